"""The metrics page of the app, fetched, distrusted, and shown as part of ours."""

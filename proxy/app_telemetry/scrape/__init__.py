"""The app's metrics page: fetched on a schedule, validated, and shown as part of ours."""

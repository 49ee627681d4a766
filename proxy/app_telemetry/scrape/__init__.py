"""The app's metrics page: fetched on a schedule, validated, shown as part of ours."""

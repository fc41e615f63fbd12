"""Another sidecar calls our app."""

"""What people look at: scenes for the browser, charts, the report, the viewer, videos and figures."""

"""Tables and charts of results: they read files, and know no policy and no simulator."""

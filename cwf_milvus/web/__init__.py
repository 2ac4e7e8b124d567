"""The service: photos of open collections searched, shown and added over HTTP, and the page."""

"""Photos: formats, limits and the reading of what anybody's folders and networks hold."""

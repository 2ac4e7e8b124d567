"""Any name, url, bytes or array becomes upright pixels and a `Box`."""

"""The page of `syncd ui`, and the server on loopback that shows it."""

"""Tables from users: files to frames, frames to columns of known kind, columns to numbers."""

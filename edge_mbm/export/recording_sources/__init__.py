"""Recordings from where users have them: MCAP files, videos with sound, folders, arrays."""

__all__: list[str] = []

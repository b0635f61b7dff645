"""Suffixes of audio files that are read and written. Imports nothing, so that a command can check a name first."""

# what is looked for in a collection; how a file is read is decided by its content
SUFFIXES = (
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64",
    ".m4a", ".m4b", ".mp4", ".mov", ".aac", ".webm", ".mka", ".mkv", ".wma", ".wv", ".ape", ".tta", ".mp2",
)  # fmt: skip

# what is written, with libsndfile's names of container and coding
WRITABLE = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}

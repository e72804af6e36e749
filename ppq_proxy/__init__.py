"""An OpenAI-compatible gateway that charges every call exactly."""

__version__ = "0.1.0"

"""Plain captions into interleaved instructions: attribute tokens, image placeholders, families' frames."""

from sigma_data.injection.request import VERSION, Injection, Phrase, Reference, Request
from sigma_data.injection.rules import inject

__all__ = ["VERSION", "Injection", "Phrase", "Reference", "Request", "inject"]

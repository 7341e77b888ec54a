"""Injection of many captions: by rules, or by a language model with a cache, a budget and a report."""

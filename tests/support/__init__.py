"""What tests share: small corpora, runs, tokenizers and checkpoints, and the places of files."""

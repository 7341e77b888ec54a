"""`sigma upload`: a corpus or a model to the hub, with a card, private unless asked otherwise; only what it lacks."""

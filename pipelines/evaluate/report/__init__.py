"""The report of an evaluation: tables, HTML page, thumbnails, published figures."""

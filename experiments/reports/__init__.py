"""The pages that experiments write: tables, pictures and what they say, one file a page."""

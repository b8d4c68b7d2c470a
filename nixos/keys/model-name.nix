# A regular expression of what a model may be called.
"[A-Za-z0-9][A-Za-z0-9._:/@+-]*"

"""Measurements of the whole product. Each script's last line of standard output is one JSON document."""

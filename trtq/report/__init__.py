"""Reports: tables on the terminal and one self-contained HTML page."""

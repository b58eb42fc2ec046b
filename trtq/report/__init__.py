"""What a person reads: tables on the terminal and one self-contained HTML page."""

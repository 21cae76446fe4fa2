"""HTML reports with tables and plots."""

"""Figures out of records, and pages, tables and charts out of figures. Pure, but for the files that end it."""

"""Everything that is shown: text and tables on the console, live displays, pictures, and the page of a report."""

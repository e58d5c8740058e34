"""How the processes of one job find each other, see that all live, and end together; `distributed` is its face."""

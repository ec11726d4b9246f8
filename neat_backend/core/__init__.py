"""Arrays in, arrays out: encoders, neighbours, scores, classifier. Nothing here knows of servers."""

"""The status page: plain HTML, CSS and JavaScript that read the learner's own JSON."""

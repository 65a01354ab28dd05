"""The status page: plain HTML, CSS and JavaScript that read the learner's own JSON."""

from asympo.learner.page.mount import HostCheck, mount_page

__all__ = ["HostCheck", "mount_page"]

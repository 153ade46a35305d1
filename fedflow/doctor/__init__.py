"""``fedflow doctor``: what is wrong at a site before a job finds out, and what to do about it.

Every check is a function that takes what it looks at and gives :class:`Finding` s; none changes
anything but a scratch file of its own. What servers say is measured and compared, never repeated.
"""

"""One file a backbone; its name is the file's stem. Every file defines `BACKBONE`.

Files that begin with an underscore hold what the backbones of a family share.
"""

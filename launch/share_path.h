/* Files that come with the program: beside it as it is installed (PREFIX/bin, PREFIX/share), in its
 * source tree, or where the build was told to install. */
#ifndef LEAN_LAUNCH_SHARE_PATH_H
#define LEAN_LAUNCH_SHARE_PATH_H

/* The first of those places that has name, a file or folder of configs/; malloc'ed, NULL: none. */
char *share_path(const char *name);

#endif

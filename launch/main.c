/* The program `lean`: finds the command and runs it. */
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "version")) {
        printf("lean %s\n", LEAN_VERSION);
        return 0;
    }
    fprintf(stderr, "usage: lean COMMAND [options] [arguments]\n");
    return 2;
}

/* Widths by wcwidth. */
#include "launch/terminal/text_width.h"

#include <locale.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <wchar.h>

#include "proto/base/utf8.h"

void text_width_init(void)
{
    setlocale(LC_CTYPE, "C.UTF-8");
}

size_t text_char(const char *text, size_t n, int *width)
{
    uint32_t code = 0;
    const size_t length = utf8_decode(text, n, &code);
    *width = 1;
    if (!length) return 1;
    if (code < 32 || (code >= 127 && code < 160)) {
        *width = -1;
    } else if (code > 127) {
        const int known = wcwidth((wchar_t)code);
        if (known >= 0) *width = known;
    }
    return length;
}

int text_columns(const char *text, size_t n)
{
    int columns = 0, width;
    for (size_t i = 0; i<n; columns += width> 0 ? width : 0)
        i += text_char(text + i, n - i, &width);
    return columns;
}

int terminal_columns(int fd, int *n_line)
{
    struct winsize size;
    const int known = !ioctl(fd, TIOCGWINSZ, &size) && size.ws_col > 0;
    if (n_line) *n_line = known && size.ws_row > 0 ? size.ws_row : 24;
    return known ? size.ws_col : 80;
}

/* References to repositories. */
#include "coordinator/hub/hub_ref.h"

#include <ctype.h>
#include <string.h>

/* As the hub itself restricts them. */
static bool is_name(const char *text, size_t n)
{
    if (!n || n > 96 || text[0] == '-' || text[0] == '.' || text[n - 1] == '.') return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)text[i]) && !strchr("-_.", text[i])) return false;
    return !memmem(text, n, "..", 2) && !memmem(text, n, "--", 2);
}

bool hub_ref_is_revision(const char *text)
{
    const size_t n = strlen(text);
    if (!n || n >= sizeof(((struct hub_ref *)0)->revision) || text[0] == '/' || text[n - 1] == '/')
        return false;
    for (const char *c = text; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr("-_./+", *c)) return false;
    return text[0] != '.' && !strstr(text, "..") && !strstr(text, "//") && !strstr(text, "/.");
}

bool hub_ref_is_commit(const char *text)
{
    return strlen(text) == 40 && strspn(text, "0123456789abcdef") == 40;
}

static bool take(char *out, size_t size, const char *text, size_t n)
{
    if (!n || n >= size) return false;
    memcpy(out, text, n);
    out[n] = '\0';
    return true;
}

bool hub_ref_parse(struct hub_ref *out, const char *text)
{
    struct hub_ref ref = {0};
    if (!strncmp(text, "hf:", 3)) text += 3;
    const size_t n_owner = strcspn(text, "/");
    if (text[n_owner] != '/' || !is_name(text, n_owner)) return false;
    const size_t n_name = strcspn(text + n_owner + 1, "/@:");
    const size_t n_repo = n_owner + 1 + n_name;
    if (!is_name(text + n_owner + 1, n_name) || !take(ref.repo, sizeof(ref.repo), text, n_repo))
        return false;
    text += n_repo;
    if (*text == '@') {
        const size_t n = strcspn(++text, ":");
        if (!take(ref.revision, sizeof(ref.revision), text, n)) return false;
        if (!hub_ref_is_revision(ref.revision)) return false;
        text += n;
    }
    if (*text == ':') {
        if (!take(ref.variant, sizeof(ref.variant), text + 1, strlen(text + 1))) return false;
        text += strlen(text);
    }
    if (*text) return false;
    *out = ref;
    return true;
}

#include "coordinator/server/http_policy.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <string.h>
#include <strings.h>

enum { MAX_HEADER_LIST = 4096, MAX_REQUEST_ID = 128, MAX_NAME = 255 };

/* The name in "NAME", "NAME:PORT", "[ADDRESS]:PORT"; false: malformed. */
static bool cut_port(const char *text, size_t n_text, char name[MAX_NAME + 1])
{
    const char *end = text + n_text;
    const char *name_end = *text == '[' ? memchr(text, ']', n_text) : NULL;
    if (*text == '[' && !name_end) return false;
    if (name_end)
        name_end++;
    else if (!(name_end = memchr(text, ':', n_text)))
        name_end = end;
    if (name_end < end) {
        if (*name_end != ':') return false;
        for (const char *c = name_end + 1; c < end; c++)
            if (!isdigit((unsigned char)*c)) return false;
    }
    size_t n = (size_t)(name_end - text);
    if (!n || n > MAX_NAME) return false;
    memcpy(name, text, n);
    if (n > 1 && name[n - 1] == '.') n--; /* a name may end in the root's dot */
    name[n] = '\0';
    return true;
}

static bool is_this_machine(const char *name)
{
    struct in_addr address;
    if (!strcasecmp(name, "localhost") || !strcmp(name, "[::1]")) return true;
    return inet_pton(AF_INET, name, &address) == 1 && ntohl(address.s_addr) >> 24 == 127;
}

const char *http_policy_origin(const char *origin, const char *const *origins, size_t n)
{
    char name[MAX_NAME + 1];
    for (size_t i = 0; i < n; i++) {
        if (!strcmp(origins[i], "*")) return "*";
        if (!strcmp(origins[i], origin)) return origin;
    }
    if (n) return NULL;
    const char *host = !strncmp(origin, "http://", 7)    ? origin + 7
                       : !strncmp(origin, "https://", 8) ? origin + 8
                                                         : NULL;
    if (!host || !cut_port(host, strlen(host), name)) return NULL;
    const bool local =
        !strcasecmp(name, "localhost") || !strcmp(name, "127.0.0.1") || !strcmp(name, "[::1]");
    return local ? origin : NULL;
}

bool http_policy_host(const char *host, const char *const *names, size_t n)
{
    char name[MAX_NAME + 1];
    if (!*host || !cut_port(host, strlen(host), name)) return false;
    if (is_this_machine(name)) return true;
    for (size_t i = 0; i < n; i++)
        if (!strcasecmp(names[i], name) || !strcasecmp(names[i], host)) return true;
    return false;
}

bool http_policy_request_id(const char *text)
{
    size_t n = 0;
    for (; text[n]; n++)
        if (n == MAX_REQUEST_ID || (!isalnum((unsigned char)text[n]) && !strchr("._:-", text[n])))
            return false;
    return n > 0;
}

bool http_policy_header_list(const char *text)
{
    const size_t n = strlen(text);
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)text[i]) && !strchr("!#$%&'*+-.^_`|~, ", text[i])) return false;
    return n > 0 && n <= MAX_HEADER_LIST;
}

const char *http_policy_bearer(const char *authorization)
{
    if (!authorization || strncasecmp(authorization, "Bearer", 6)) return NULL;
    const char *key = authorization + 6;
    if (*key && *key != ' ') return NULL;
    key += strspn(key, " ");
    return key;
}

/* Options and variables. */
#include "launch/hub_settings.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launch/config.h"
#include "proto/base/read_all.h"

enum { TOKEN_MAX = 4096 };

/* FOLDER/NAME, NULL of NULL. */
static char *below(const char *folder, const char *name)
{
    char *path;
    return folder && asprintf(&path, "%s/%s", folder, name) >= 0 ? path : NULL;
}

static char *without_slash(char *text)
{
    for (size_t n = text ? strlen(text) : 0; n > 1 && text[n - 1] == '/'; n--)
        text[n - 1] = '\0';
    return text;
}

static char *copy_of(const char *text)
{
    return text ? strdup(text) : NULL;
}

static bool is_on(const char *name)
{
    const char *value = config_environment(name);
    return value && (!strcmp(value, "1") || !strcasecmp(value, "true") ||
                     !strcasecmp(value, "yes") || !strcasecmp(value, "on"));
}

static char *find_cache(const char *option)
{
    char *cache = copy_of(option);
    if (!cache) cache = copy_of(config_environment("LEAN_CACHE"));
    if (!cache) cache = copy_of(config_environment("HF_HUB_CACHE"));
    if (!cache) cache = below(config_environment("HF_HOME"), "hub");
    if (!cache) cache = config_user_path("XDG_CACHE_HOME", ".cache", "huggingface/hub");
    return without_slash(cache);
}

/* The token in a file, without the line break behind it. */
static enum lm_status read_token(const char *path, char **out, struct lm_error *err)
{
    size_t n;
    enum lm_status status = read_all_path(path, TOKEN_MAX, out, &n, err);
    if (status != LM_OK) return status;
    while (n && isspace((unsigned char)(*out)[n - 1]))
        (*out)[--n] = '\0';
    if (n) return LM_OK;
    free(*out);
    *out = NULL;
    return lm_fail(err, LM_E_USAGE, "%s: holds no token", path);
}

static enum lm_status find_token(const char *file, char **out, struct lm_error *err)
{
    *out = NULL;
    if (file) return read_token(file, out, err);
    if (is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN")) return LM_OK;
    *out = copy_of(config_environment("HF_TOKEN"));
    if (*out) return LM_OK;
    char *path = copy_of(config_environment("HF_TOKEN_PATH"));
    if (!path) path = below(config_environment("HF_HOME"), "token");
    if (!path) path = config_user_path("XDG_CACHE_HOME", ".cache", "huggingface/token");
    if (path) read_token(path, out, NULL); /* nobody need have one */
    free(path);
    return LM_OK;
}

enum lm_status hub_settings_read(struct hub_settings *out, const char *cache, const char *endpoint,
                                 const char *token_file, struct lm_error *err)
{
    struct hub_settings settings = {.offline = is_on("HF_HUB_OFFLINE")};
    if (!endpoint) endpoint = config_environment("HF_ENDPOINT");
    if (!endpoint) endpoint = "https://huggingface.co";
    if (strncmp(endpoint, "http://", 7) != 0 && strncmp(endpoint, "https://", 8) != 0)
        return lm_fail(err, LM_E_USAGE, "endpoint '%.200s': is no http or https URL", endpoint);
    settings.cache = find_cache(cache);
    settings.endpoint = without_slash(strdup(endpoint));
    enum lm_status status = settings.cache && settings.endpoint
                                ? find_token(token_file, &settings.token, err)
                                : lm_fail(err, LM_E_USAGE, "no cache folder, and no home for it");
    /* what ends a header's line would begin another */
    if (status == LM_OK && settings.token && strpbrk(settings.token, "\r\n"))
        status = lm_fail(err, LM_E_USAGE, "the token has more than one line");
    if (status == LM_OK)
        *out = settings;
    else
        hub_settings_free(&settings);
    return status;
}

void hub_settings_free(struct hub_settings *settings)
{
    free(settings->cache);
    free(settings->endpoint);
    free(settings->token);
    *settings = (struct hub_settings){0};
}

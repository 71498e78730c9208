/* Revisions and listings. */
#include "coordinator/hub/hub_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "coordinator/hub/hub_ref.h"

enum { PAGES_MAX = 10000, FILES_MAX = 1000000, JSON_DEPTH = 16 };

static struct json_object *parse(const struct byte_buffer *body)
{
    struct json_tokener *tokener = json_tokener_new_ex(JSON_DEPTH);
    struct json_object *value = NULL;
    if (tokener && body->n && body->n < INT32_MAX)
        value = json_tokener_parse_ex(tokener, body->data, (int)body->n);
    /* a document that goes on where the bytes end is none */
    if (value && json_tokener_get_error(tokener) != json_tokener_success) {
        json_object_put(value);
        value = NULL;
    }
    if (tokener) json_tokener_free(tokener);
    return value;
}

static const char *text_of(struct json_object *object, const char *name)
{
    struct json_object *value;
    if (!json_object_object_get_ex(object, name, &value) ||
        !json_object_is_type(value, json_type_string))
        return NULL;
    return json_object_get_string(value);
}

/* -1: there is none. */
static int64_t size_of(struct json_object *object)
{
    struct json_object *value;
    if (!json_object_object_get_ex(object, "size", &value) ||
        !json_object_is_type(value, json_type_int))
        return -1;
    return json_object_get_int64(value);
}

/* As one part of a path: "refs/pr/1" becomes "refs%2Fpr%2F1". */
static char *escape_revision(const char *revision)
{
    struct byte_buffer out = {0};
    for (const char *c = revision; *c; c++)
        if (*c == '/')
            byte_buffer_put_text(&out, "%2F");
        else if (*c == '+')
            byte_buffer_put_text(&out, "%2B");
        else
            byte_buffer_put(&out, c, 1);
    return out.failed ? NULL : out.data;
}

enum lm_status hub_api_resolve(const struct hub_http *http, const char *repo, const char *revision,
                               char commit[41], struct lm_error *err)
{
    struct byte_buffer body = {0};
    struct hub_head head = {0};
    char *url = NULL, what[420], *escaped = escape_revision(revision);
    if (!escaped ||
        asprintf(&url, "%s/api/models/%s/revision/%s", http->endpoint, repo, escaped) < 0) {
        free(escaped);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a URL");
    }
    snprintf(what, sizeof(what), "%s@%s", repo, revision);
    enum lm_status status = hub_http_get(http, url, what, &body, &head, err);
    struct json_object *answer = status == LM_OK ? parse(&body) : NULL;
    const char *sha = json_object_is_type(answer, json_type_object) ? text_of(answer, "sha") : NULL;
    if (status == LM_OK && (!sha || !hub_ref_is_commit(sha)))
        status = lm_fail(err, LM_E_FORMAT, "%s: %s names no commit", what, http->endpoint);
    if (status == LM_OK) memcpy(commit, sha, 41);
    json_object_put(answer);
    hub_head_clear(&head);
    byte_buffer_free(&body);
    free(escaped);
    free(url);
    return status;
}

/* An entry of the listing; folders are left out. */
static enum lm_status add_entry(struct hub_files *files, struct json_object *entry,
                                const char *what, struct lm_error *err)
{
    if (!json_object_is_type(entry, json_type_object))
        return lm_fail(err, LM_E_FORMAT, "%s: an entry of the list of files is no object", what);
    const char *type = text_of(entry, "type"), *path = text_of(entry, "path");
    if (type && strcmp(type, "file") != 0) return LM_OK;
    struct json_object *lfs = NULL;
    json_object_object_get_ex(entry, "lfs", &lfs);
    const bool is_lfs = json_object_is_type(lfs, json_type_object);
    const char *hash = text_of(is_lfs ? lfs : entry, "oid");
    int64_t n_bytes = is_lfs ? size_of(lfs) : -1;
    if (n_bytes < 0) n_bytes = size_of(entry);
    if (hash && !strncmp(hash, "sha256:", 7)) hash += 7;
    if (!path || n_bytes < 0 || !hash || strlen(hash) != (is_lfs ? 64 : 40) ||
        strspn(hash, "0123456789abcdef") != strlen(hash))
        return lm_fail(err, LM_E_FORMAT,
                       "%s: the list of files lacks path, size or hash of '%.200s'", what,
                       path ? path : "");
    if (files->n >= FILES_MAX)
        return lm_fail(err, LM_E_LIMIT, "%s: has more than %d files", what, FILES_MAX);
    return hub_files_add(files, path, (uint64_t)n_bytes, hash, err);
}

static enum lm_status add_page(struct hub_files *files, const struct byte_buffer *body,
                               const char *what, struct lm_error *err)
{
    struct json_object *list = parse(body);
    enum lm_status status = LM_OK;
    if (!json_object_is_type(list, json_type_array))
        status = lm_fail(err, LM_E_FORMAT, "%s: the list of files is no list", what);
    for (size_t i = 0; status == LM_OK && i < json_object_array_length(list); i++)
        status = add_entry(files, json_object_array_get_idx(list, i), what, err);
    json_object_put(list);
    return status;
}

enum lm_status hub_api_list(const struct hub_http *http, const char *repo, const char *commit,
                            struct hub_files *files, struct lm_error *err)
{
    struct byte_buffer body = {0};
    struct hub_head head = {0};
    char *url = NULL;
    enum lm_status status = LM_OK;
    if (asprintf(&url, "%s/api/models/%s/tree/%s?recursive=true", http->endpoint, repo, commit) < 0)
        return lm_fail(err, LM_E_NO_MEM, "no memory for a URL");
    for (unsigned n_page = 0; url && status == LM_OK; n_page++) {
        if (n_page == PAGES_MAX)
            status = lm_fail(err, LM_E_LIMIT, "%s: the list of files does not end", repo);
        if (status == LM_OK) status = hub_http_get(http, url, repo, &body, &head, err);
        if (status == LM_OK) status = add_page(files, &body, repo, err);
        char *next = NULL;
        if (status == LM_OK && head.link_next) {
            const struct hub_head to = {.location = head.link_next};
            status = hub_http_redirect(url, &to, &next, err);
        }
        free(url);
        url = next;
    }
    free(url);
    hub_head_clear(&head);
    byte_buffer_free(&body);
    hub_files_sort(files);
    for (size_t i = 1; i < files->n && status == LM_OK; i++)
        if (!strcmp(files->file[i - 1].path, files->file[i].path))
            status = lm_fail(err, LM_E_FORMAT, "%s: lists %.200s twice", repo, files->file[i].path);
    return status;
}

char *hub_api_file_url(const struct hub_http *http, const char *repo, const char *commit,
                       const char *path)
{
    char *url = NULL, *escaped = hub_http_escape_path(path);
    if (escaped && asprintf(&url, "%s/%s/resolve/%s/%s", http->endpoint, repo, commit, escaped) < 0)
        url = NULL;
    free(escaped);
    return url;
}

/* Routes, origins, hosts, keys, identifiers: the rules of the HTTP layer that need no socket. */
#include "tests/unit/cmocka_all.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "coordinator/server/http_policy.h"
#include "coordinator/server/http_route.h"
#include "coordinator/server/keys.h"
#include "coordinator/server/random_id.h"

static void handle(void *context, struct http_exchange *exchange)
{
    (void)context;
    (void)exchange;
}

static const struct http_route routes[] = {
    {.method = "GET", .path = "/", .handle = handle},
    {.method = "GET", .path = "/v1/models", .handle = handle, .has_alias = true},
    {.method = "GET", .path = "/v1/models/{id}", .handle = handle, .has_alias = true},
    {.method = "GET", .path = "/v1/models/own", .handle = handle},
    {.method = "POST", .path = "/v1/requests/{id}/cancel", .handle = handle},
    {.method = "POST", .path = "/tokenize", .handle = handle, .has_alias = true},
    {.method = "GET", .path = "/both", .handle = handle},
    {.method = "POST", .path = "/both", .handle = handle},
    {0},
};

static void assert_route(const char *method, const char *path, const char *expected,
                         const char *rest)
{
    const struct http_match match = http_route_match(routes, method, path);
    if (!match.route) fail_msg("%s %s: no route", method, path);
    assert_string_equal(match.route->path, expected);
    if (rest)
        assert_true(match.n_rest == strlen(rest) && !memcmp(match.rest, rest, match.n_rest));
    else
        assert_null(match.rest);
}

static void paths_find_their_routes(void **state)
{
    (void)state;
    assert_route("GET", "/", "/", NULL);
    assert_route("HEAD", "/v1/models/", "/v1/models", NULL);
    assert_route("GET", "/models", "/v1/models", NULL);
    assert_route("GET", "/v1/models/a/b", "/v1/models/{id}", "a/b");
    assert_route("GET", "/models/x", "/v1/models/{id}", "x");
    assert_route("GET", "/v1/models/own", "/v1/models/own", NULL);
    assert_route("POST", "/v1/requests/a/b/cancel", "/v1/requests/{id}/cancel", "a/b");
    assert_route("POST", "/v1/tokenize", "/tokenize", NULL);
    assert_route("POST", "/tokenize//", "/tokenize", NULL);
}

static void others_are_told_from_wrong_methods(void **state)
{
    (void)state;
    static const char *const unknown[] = {"/v1",
                                          "/v1/",
                                          "/requests/a/cancel",
                                          "/v1/v1/models",
                                          "//models",
                                          "/v1/requests//cancel",
                                          "",
                                          "/v1tokenize"};
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        const struct http_match match = http_route_match(routes, "GET", unknown[i]);
        if (match.route || *match.allow) fail_msg("'%s' has a route", unknown[i]);
    }
    assert_string_equal(http_route_match(routes, "POST", "/v1/models").allow, "GET, HEAD, OPTIONS");
    assert_string_equal(http_route_match(routes, "GET", "/tokenize").allow, "POST, OPTIONS");
    assert_string_equal(http_route_match(routes, "PUT", "/both").allow, "GET, HEAD, POST, OPTIONS");
}

static void a_prefix_is_cut_at_a_slash(void **state)
{
    (void)state;
    assert_string_equal(http_route_below("/x/v1", "/x"), "/v1");
    assert_string_equal(http_route_below("/x", "/x"), "/");
    assert_string_equal(http_route_below("/v1", NULL), "/v1");
    assert_null(http_route_below("/xy", "/x"));
    assert_null(http_route_below("/", "/x"));
}

static void origins(void **state)
{
    (void)state;
    static const char *const mine[] = {"https://a.example"}, *const any[] = {"*"};
    static const char *const local[] = {"http://localhost", "https://localhost:1",
                                        "http://127.0.0.1:3000", "http://[::1]"};
    static const char *const foreign[] = {"http://localhost.evil",
                                          "null",
                                          "http://127.0.0.2",
                                          "http://a@localhost",
                                          "ftp://localhost",
                                          "http://",
                                          "",
                                          "localhost",
                                          "http://localhost:x",
                                          "http://[::1"};
    for (size_t i = 0; i < sizeof(local) / sizeof(local[0]); i++)
        assert_ptr_equal(http_policy_origin(local[i], NULL, 0), local[i]);
    for (size_t i = 0; i < sizeof(foreign) / sizeof(foreign[0]); i++)
        if (http_policy_origin(foreign[i], NULL, 0)) fail_msg("%s is allowed", foreign[i]);
    assert_string_equal(http_policy_origin("https://a.example", mine, 1), "https://a.example");
    assert_null(http_policy_origin("http://localhost", mine, 1));
    assert_string_equal(http_policy_origin("null", any, 1), "*");
}

static void hosts(void **state)
{
    (void)state;
    static const char *const names[] = {"Box.example", "port.example:80"};
    static const char *const good[] = {"localhost",    "LOCALHOST:1",   "127.0.0.1",
                                       "127.9.9.9:80", "[::1]",         "[::1]:1",
                                       "localhost.",   "box.example:9", "port.example:80"};
    static const char *const bad[] = {"",      "evil.example", "localhost.evil", "127.0.0.1.evil",
                                      "[::2]", "port.example", "[::1",           "localhost:x",
                                      ":80",   "1.2.3.4"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        if (!http_policy_host(good[i], names, 2)) fail_msg("%s is refused", good[i]);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (http_policy_host(bad[i], names, 2)) fail_msg("%s is allowed", bad[i]);
}

static void texts_for_headers(void **state)
{
    (void)state;
    char long_id[200];
    memset(long_id, 'a', sizeof(long_id));
    long_id[129] = '\0';
    assert_false(http_policy_request_id(long_id));
    long_id[128] = '\0';
    assert_true(http_policy_request_id(long_id));
    assert_false(http_policy_request_id(""));
    assert_false(http_policy_request_id("a\nb"));
    assert_true(http_policy_header_list("authorization, x-a"));
    assert_false(http_policy_header_list("a: b"));
    assert_string_equal(http_policy_bearer("bearer  key"), "key");
    assert_string_equal(http_policy_bearer("Bearer"), "");
    assert_null(http_policy_bearer("Basic key"));
    assert_null(http_policy_bearer("Bearerkey"));
    assert_null(http_policy_bearer(NULL));
}

static void each_owner_has_so_many_sequences(void **state)
{
    (void)state;
    struct keys *keys;
    assert_int_equal(keys_create(&keys, 7, NULL), LM_OK);
    assert_true(keys_take(keys, 1, 2, 3));
    assert_false(keys_take(keys, 1, 2, 3));
    assert_true(keys_take(keys, 2, 3, 3));
    assert_false(keys_take(keys, 3, 4, 3));
    assert_true(keys_take(keys, 1, 1, 3));
    assert_false(keys_take(keys, 1, 1, 3));
    assert_false(keys_take(keys, 1, UINT32_MAX, 3));
    keys_give_back(keys, 1, 2);
    assert_true(keys_take(keys, 1, 1, 3));
    keys_give_back(keys, 1, 2);
    keys_give_back(keys, 2, 3);
    assert_true(keys_take(keys, 4, 3, 3)); /* entries are used again */
    keys_give_back(keys, 4, 3);
    keys_destroy(keys);
}

static void keys_match_only_themselves(void **state)
{
    (void)state;
    struct keys *keys;
    struct lm_error err;
    char path[] = "/tmp/lean-keys-XXXXXX", long_key[KEYS_MAX_LENGTH + 2];
    const char *const list[] = {"one", " two "};
    const int fd = mkstemp(path);
    dprintf(fd, "# a comment\nthree # another\r\n\n\n  four");
    close(fd);
    uint64_t owner = 1, owners[6];
    assert_int_equal(keys_create(&keys, 7, &err), LM_OK);
    assert_true(keys_match(keys, NULL, &owner)); /* no keys: everybody */
    assert_true(keys_match(keys, "x", &owner));
    assert_int_equal(owner, 0);
    assert_int_equal(keys_load(keys, list, 2, path, "five,,six,", &err), LM_OK);
    assert_int_equal(keys_count(keys), 6);
    static const char *const good[] = {"one", "two", "three", "four", "five", "six"};
    static const char *const bad[] = {"", "on", "onee", "One", "# a comment", "one,two", " two "};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        if (!keys_match(keys, good[i], &owners[i])) fail_msg("%s is refused", good[i]);
        assert_true(keys_match(keys, good[i], &owner) && owner == owners[i] && owner != 0);
        assert_true(!i || owner != owners[i - 1]);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (keys_match(keys, bad[i], &owner)) fail_msg("'%s' is accepted", bad[i]);
    assert_false(keys_match(keys, NULL, &owner));
    /* what cannot be read leaves the keys as they are */
    unlink(path);
    assert_int_equal(keys_load(keys, list, 1, path, NULL, &err), LM_E_NOT_FOUND);
    memset(long_key, 'k', sizeof(long_key));
    long_key[KEYS_MAX_LENGTH + 1] = '\0';
    assert_int_equal(keys_load(keys, NULL, 0, NULL, long_key, &err), LM_E_USAGE);
    static const char *const empty[] = {" "};
    assert_int_equal(keys_load(keys, empty, 1, NULL, NULL, &err), LM_E_USAGE);
    assert_int_equal(keys_load(keys, NULL, 0, "/dev/null", NULL, &err), LM_E_USAGE);
    assert_int_equal(keys_load(keys, NULL, 0, NULL, ",", &err), LM_E_USAGE);
    assert_false(keys_match(keys, long_key, &owner));
    assert_true(keys_match(keys, "three", &owner));
    keys_destroy(keys);
}

static void identifiers_are_fresh(void **state)
{
    (void)state;
    char a[RANDOM_ID_SIZE], b[RANDOM_ID_SIZE];
    random_id_make(a, "chatcmpl-");
    random_id_make(b, "chatcmpl-");
    assert_int_equal(strlen(a), strlen("chatcmpl-") + 24);
    assert_memory_equal(a, "chatcmpl-", 9);
    assert_string_not_equal(a, b);
    for (const char *c = a + 9; *c; c++)
        assert_true(isalnum((unsigned char)*c));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(paths_find_their_routes),
        cmocka_unit_test(others_are_told_from_wrong_methods),
        cmocka_unit_test(a_prefix_is_cut_at_a_slash),
        cmocka_unit_test(origins),
        cmocka_unit_test(hosts),
        cmocka_unit_test(texts_for_headers),
        cmocka_unit_test(each_owner_has_so_many_sequences),
        cmocka_unit_test(keys_match_only_themselves),
        cmocka_unit_test(identifiers_are_fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

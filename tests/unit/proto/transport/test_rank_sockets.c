/* Which addresses of this machine a rank says it can be reached at. */
#include <arpa/inet.h>
#include <net/if.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/transport/rank_sockets.h"

static enum lm_status open_on(const char *network, struct rank_card *card, struct lm_error *err)
{
    int listener = -1;
    const enum lm_status status = rank_listener_open(&listener, card, network, err);
    if (listener >= 0) close(listener);
    return status;
}

/* lo, 127.0.0.0/8 and 127.0.0.1 stand for the same. */
static void test_an_interface_by_name_address_or_network(void **state)
{
    static const char *const names[] = {"lo", "127.0.0.0/8", "127.0.0.1"};
    static const uint8_t loopback[4] = {127, 0, 0, 1};
    (void)state;
    if (!if_nametoindex("lo")) skip();
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct rank_card card;
        struct lm_error err;
        bool found = false;
        assert_int_equal(open_on(names[i], &card, &err), LM_OK);
        assert_true(card.port > 0);
        for (uint16_t j = 0; j < card.n_address; j++)
            found |= !card.address[j].is_v6 && !memcmp(card.address[j].bytes, loopback, 4);
        assert_true(found);
    }
}

static void test_what_is_no_interface(void **state)
{
    static const char *const names[] = {"",
                                        "nosuch0",
                                        "10.0.0.0/33",
                                        "10.0.0.0/",
                                        "10.0.0.0/x",
                                        "0.1.2.0/24",
                                        "a name that no interface has"};
    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct rank_card card;
        struct lm_error err;
        if (open_on(names[i], &card, &err) != LM_E_USAGE) fail_msg("%s", names[i]);
        assert_non_null(strstr(err.message, names[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_interface_by_name_address_or_network),
        cmocka_unit_test(test_what_is_no_interface),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Where a standard's limit would take an automaton of many thousand states, a smaller limit stands
 * in: what is generated is then always valid, though not everything valid can be generated. */
#include "coordinator/grammar/string_format.h"

#include <stddef.h>
#include <string.h>

/* The year 0000 is left out: calendars of many libraries begin with 0001. */
#define YEAR "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
#define LEAP_YEAR                                                                                  \
    "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
#define DATE                                                                                       \
    "(?:" YEAR "-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"                                 \
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|" LEAP_YEAR "-02-29)"
#define CLOCK "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
#define TIME CLOCK ":[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-]" CLOCK ")"
#define BYTE "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define HEX "[0-9A-Fa-f]"
#define GROUP HEX "{1,4}"
#define LABEL "[0-9A-Za-z](?:[0-9A-Za-z-]*[0-9A-Za-z])?"
#define ATOM "[0-9A-Za-z!#$%&'*+/=?^_`{|}~-]+"
#define URI_CHARACTER "(?:[0-9A-Za-z._~!$&'()*+,;=:@-]|%" HEX HEX ")"
#define URI_NAME "(?:[0-9A-Za-z._~!$&'()*+,;=-]|%" HEX HEX ")"

static const struct string_format formats[] = {
    {"date", DATE, UINT32_MAX},
    {"time", TIME, UINT32_MAX},
    {"date-time", DATE "T" TIME, UINT32_MAX},
    {"uuid", HEX "{8}-(?:" HEX "{4}-){3}" HEX "{12}", UINT32_MAX},
    {"ipv4", "(?:" BYTE "\\.){3}" BYTE, UINT32_MAX},
    {"ipv6",
     "(?:" GROUP ":){7}" GROUP "|(?:" GROUP ":){1,7}:|(?:" GROUP ":){1,6}:" GROUP "|(?:" GROUP
     ":){1,5}(?::" GROUP "){1,2}|(?:" GROUP ":){1,4}(?::" GROUP "){1,3}|(?:" GROUP
     ":){1,3}(?::" GROUP "){1,4}|(?:" GROUP ":){1,2}(?::" GROUP "){1,5}|" GROUP ":(?:(?::" GROUP
     "){1,6})|:(?:(?::" GROUP "){1,7}|:)",
     UINT32_MAX},
    /* 63 characters in all keep each label within its 63 */
    {"hostname", LABEL "(?:\\." LABEL ")*", 63},
    {"email", ATOM "(?:\\." ATOM ")*@" LABEL "(?:\\." LABEL ")+", 63},
    {"uri",
     "[A-Za-z][0-9A-Za-z+.-]*:(?://(?:(?:" URI_NAME "|:)*@)?" URI_NAME
     "*(?::[0-9]*)?(?:/" URI_CHARACTER "*)*|/?(?:" URI_CHARACTER "+(?:/" URI_CHARACTER
     "*)*)?)(?:\\?(?:" URI_CHARACTER "|[/?])*)?(?:#(?:" URI_CHARACTER "|[/?])*)?",
     UINT32_MAX},
};

const struct string_format *string_format_find(const char *name)
{
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
        if (!strcmp(formats[i].name, name)) return &formats[i];
    return NULL;
}

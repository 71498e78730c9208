/* launch/config.c and proto/config.proto: the options and the messages say the same. */
#include "tests/unit/cmocka_all.h"

#include <ctype.h>
#include <stdio.h>

#include "launch/config.h"
#include "launch/options.h"
#include "proto/config.pb-c.h"
#include "proto/text/textproto.h"

/* "AUTO, REF" of the enum is "auto|ref" of the option. */
static void assert_same_words(const ProtobufCFieldDescriptor *field, const char *words)
{
    char spelled[200] = "";
    const ProtobufCEnumDescriptor *descriptor = field->descriptor;
    for (unsigned i = 0; i < descriptor->n_values; i++) {
        if (i) strcat(spelled, "|");
        strcat(spelled, descriptor->values[i].name);
    }
    for (char *c = spelled; *c; c++)
        *c = (char)tolower((unsigned char)*c);
    assert_string_equal(spelled, words);
}

static void every_setting_is_a_field_of_its_type(void **state)
{
    (void)state;
    const struct option_spec *spec;
    for (size_t i = 0; (spec = config_setting_at(i)); i++) {
        const ProtobufCFieldDescriptor *field =
            textproto_find(&lean__config__descriptor, spec->key);
        if (!field) fail_msg("%s is not a field of lean.Config", spec->key);
        assert_int_equal(spec->repeat, field->label == PROTOBUF_C_LABEL_REPEATED);
        assert_false(field->default_value != NULL); /* defaults stand with the options */
        switch (spec->kind) {
        case OPTION_ENUM:
            assert_int_equal(field->type, PROTOBUF_C_TYPE_ENUM);
            assert_same_words(field, spec->metavar);
            break;
        case OPTION_FLOAT:
        case OPTION_TIME:
            assert_int_equal(field->type, PROTOBUF_C_TYPE_DOUBLE);
            break;
        case OPTION_SIZE:
            assert_int_equal(field->type, PROTOBUF_C_TYPE_UINT64);
            break;
        case OPTION_INT:
            assert_true(field->type == PROTOBUF_C_TYPE_INT32 ||
                        field->type == PROTOBUF_C_TYPE_UINT32 ||
                        (field->type == PROTOBUF_C_TYPE_STRING && strstr(spec->metavar, "|auto")));
            break;
        case OPTION_FLAG:
            assert_int_equal(field->type, PROTOBUF_C_TYPE_BOOL);
            break;
        case OPTION_STRING:
        case OPTION_PATH:
            assert_int_equal(field->type, PROTOBUF_C_TYPE_STRING);
        }
    }
}

static void assert_fields_are_settings(const ProtobufCMessageDescriptor *message,
                                       const char *prefix)
{
    for (unsigned i = 0; i < message->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->fields[i];
        const struct option_spec *spec;
        char path[200];
        if (!strcmp(field->name, "override")) continue;
        snprintf(path, sizeof(path), "%s%s%s", prefix, *prefix ? "." : "", field->name);
        if (field->type == PROTOBUF_C_TYPE_MESSAGE)
            assert_fields_are_settings(field->descriptor, path);
        else if (config_find_setting(&spec, path, NULL) != LM_OK)
            fail_msg("no option and no setting explains %s", path);
    }
}

static void every_field_is_a_setting(void **state)
{
    (void)state;
    assert_fields_are_settings(&lean__config__descriptor, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_setting_is_a_field_of_its_type),
        cmocka_unit_test(every_field_is_a_setting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

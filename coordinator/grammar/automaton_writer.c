/* Characters become bytes here. */
#include "coordinator/grammar/automaton_writer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/grow.h"
#include "proto/base/utf8.h"

void automaton_writer_init(struct automaton_writer *writer)
{
    *writer = (struct automaton_writer){0};
    automaton_reserve_state(writer); /* STATE_END */
    automaton_reserve_state(writer); /* STATE_RETURN */
}

void automaton_writer_fini(struct automaton_writer *writer)
{
    free(writer->states);
    free(writer->moves);
}

uint32_t automaton_reserve_state(struct automaton_writer *writer)
{
    if (writer->status != LM_OK) return STATE_RETURN;
    if (writer->n_state >= GRAMMAR_STATES_MAX)
        writer->status = LM_E_LIMIT;
    else if (!grow_to(&writer->states, &writer->state_room, writer->n_state + 1,
                      sizeof(*writer->states)))
        writer->status = LM_E_NO_MEM;
    if (writer->status != LM_OK) return STATE_RETURN;
    writer->states[writer->n_state] = (struct state){.loop_rule = LOOP_NONE};
    return (uint32_t)writer->n_state++;
}

void automaton_set_moves(struct automaton_writer *writer, uint32_t state, struct move_list *moves)
{
    if (writer->status == LM_OK && !grow_to(&writer->moves, &writer->move_room,
                                            writer->n_move + moves->n, sizeof(*writer->moves)))
        writer->status = LM_E_NO_MEM;
    if (writer->status == LM_OK && moves->n) {
        struct state *const at = &writer->states[state];
        assert(!at->n_move);
        at->first_move = (uint32_t)writer->n_move;
        at->n_move = (uint32_t)moves->n;
        for (size_t i = 0; i < moves->n; i++)
            at->takes_bytes |= moves->moves[i].kind == MOVE_BYTES;
        memcpy(writer->moves + writer->n_move, moves->moves, moves->n * sizeof(*moves->moves));
        writer->n_move += moves->n;
    }
    free(moves->moves);
    *moves = (struct move_list){0};
}

uint32_t automaton_add_state(struct automaton_writer *writer, struct move_list *moves)
{
    const uint32_t state = automaton_reserve_state(writer);
    automaton_set_moves(writer, state, moves);
    return state;
}

static void list_move(struct automaton_writer *writer, struct move_list *list, struct move move)
{
    if (writer->status != LM_OK) return;
    if (!grow_to(&list->moves, &list->room, list->n + 1, sizeof(*list->moves)))
        writer->status = LM_E_NO_MEM;
    else
        list->moves[list->n++] = move;
}

void automaton_list_empty(struct automaton_writer *writer, struct move_list *list, uint32_t target)
{
    list_move(writer, list, (struct move){.kind = MOVE_EMPTY, .target = target});
}

void automaton_list_bytes(struct automaton_writer *writer, struct move_list *list, uint8_t low,
                          uint8_t high, uint32_t target)
{
    list_move(writer, list,
              (struct move){.kind = MOVE_BYTES, .low = low, .high = high, .target = target});
}

void automaton_list_call(struct automaton_writer *writer, struct move_list *list, uint32_t rule,
                         uint32_t target)
{
    list_move(writer, list, (struct move){.kind = MOVE_CALL, .rule = rule, .target = target});
}

uint32_t automaton_add_byte(struct automaton_writer *writer, uint8_t byte, uint32_t target)
{
    struct move_list moves = {0};
    automaton_list_bytes(writer, &moves, byte, byte, target);
    return automaton_add_state(writer, &moves);
}

/* ---- UTF-8 ---------------------------------------------------------------------------------- */

/* A state that takes n continuation bytes, whichever, before target. */
static uint32_t add_tail(struct automaton_writer *writer, size_t n, uint32_t target)
{
    for (; n; n--) {
        const size_t slot = target % (sizeof(writer->tails) / sizeof(writer->tails[0]));
        if (!writer->tails[slot].state || writer->tails[slot].target != target) {
            struct move_list moves = {0};
            automaton_list_bytes(writer, &moves, 0x80, 0xbf, target);
            writer->tails[slot].state = automaton_add_state(writer, &moves);
            writer->tails[slot].target = target;
        }
        target = writer->tails[slot].state;
    }
    return target;
}

/* The sequences of n bytes from low to high, which have the same length. */
static void list_sequences(struct automaton_writer *writer, struct move_list *list,
                           const uint8_t *low, const uint8_t *high, size_t n, uint32_t target)
{
    static const uint8_t first[] = {0x80, 0x80, 0x80}, last[] = {0xbf, 0xbf, 0xbf};
    if (writer->status != LM_OK) return;
    if (n == 1) {
        automaton_list_bytes(writer, list, low[0], high[0], target);
        return;
    }
    const bool low_open = memcmp(low + 1, first, n - 1) != 0;
    const bool high_open = memcmp(high + 1, last, n - 1) != 0;
    if (low[0] == high[0] && (low_open || high_open)) {
        struct move_list rest = {0};
        list_sequences(writer, &rest, low + 1, high + 1, n - 1, target);
        automaton_list_bytes(writer, list, low[0], low[0], automaton_add_state(writer, &rest));
        return;
    }
    uint8_t from = low[0], to = high[0];
    if (low_open) {
        struct move_list rest = {0};
        list_sequences(writer, &rest, low + 1, last, n - 1, target);
        automaton_list_bytes(writer, list, from, from, automaton_add_state(writer, &rest));
        from++;
    }
    if (high_open) {
        struct move_list rest = {0};
        list_sequences(writer, &rest, first, high + 1, n - 1, target);
        automaton_list_bytes(writer, list, to, to, automaton_add_state(writer, &rest));
        to--;
    }
    if (from <= to) automaton_list_bytes(writer, list, from, to, add_tail(writer, n - 1, target));
}

void automaton_list_range(struct automaton_writer *writer, struct move_list *list, uint32_t low,
                          uint32_t high, uint32_t target)
{
    /* stretches of characters with encodings of one length */
    static const uint32_t stretches[][2] = {
        {0, 0x7f}, {0x80, 0x7ff}, {0x800, 0xd7ff}, {0xe000, 0xffff}, {0x10000, CHAR_LAST}};
    for (size_t i = 0; i < sizeof(stretches) / sizeof(stretches[0]); i++) {
        const uint32_t from = low > stretches[i][0] ? low : stretches[i][0];
        const uint32_t to = high < stretches[i][1] ? high : stretches[i][1];
        if (from > to) continue;
        char a[4], b[4];
        const size_t n = utf8_encode(from, a);
        utf8_encode(to, b);
        list_sequences(writer, list, (const uint8_t *)a, (const uint8_t *)b, n, target);
    }
}

/* ---- characters in JSON strings ------------------------------------------------------------- */

/* Behind a backslash, for the control character code: its letter, or 0. */
static uint8_t escape_letter(uint32_t code)
{
    switch (code) {
    case '\b':
        return 'b';
    case '\f':
        return 'f';
    case '\n':
        return 'n';
    case '\r':
        return 'r';
    case '\t':
        return 't';
    default:
        return code == '"' || code == '\\' ? (uint8_t)code : 0;
    }
}

struct escapes {
    struct move_list letters;   /* behind the backslash */
    struct move_list digits[2]; /* behind \u000, \u001 */
};

static void list_json_range(struct automaton_writer *writer, struct move_list *list,
                            struct escapes *escapes, uint32_t low, uint32_t high, uint32_t target)
{
    static const uint32_t raw[][2] = {{0x20, 0x21}, {0x23, 0x5b}, {0x5d, CHAR_LAST}};
    for (uint32_t code = low; code <= high && code <= '\\'; code++) {
        const uint8_t letter = escape_letter(code);
        if (letter)
            automaton_list_bytes(writer, &escapes->letters, letter, letter, target);
        else if (code < 0x20) {
            const uint8_t digit = (uint8_t) "0123456789abcdef"[code & 15];
            automaton_list_bytes(writer, &escapes->digits[code >> 4], digit, digit, target);
        }
    }
    for (size_t i = 0; i < sizeof(raw) / sizeof(raw[0]); i++) {
        const uint32_t from = low > raw[i][0] ? low : raw[i][0];
        const uint32_t to = high < raw[i][1] ? high : raw[i][1];
        if (from <= to) automaton_list_range(writer, list, from, to, target);
    }
}

static void list_escapes(struct automaton_writer *writer, struct move_list *list,
                         struct escapes *escapes)
{
    struct move_list third = {0};
    for (size_t i = 0; i < 2; i++)
        if (escapes->digits[i].n) {
            const uint8_t digit = (uint8_t)('0' + i);
            automaton_list_bytes(writer, &third, digit, digit,
                                 automaton_add_state(writer, &escapes->digits[i]));
        }
    if (third.n) {
        uint32_t state = automaton_add_state(writer, &third);
        state = automaton_add_byte(writer, '0', state);
        state = automaton_add_byte(writer, '0', state);
        automaton_list_bytes(writer, &escapes->letters, 'u', 'u', state);
    }
    if (escapes->letters.n)
        automaton_list_bytes(writer, list, '\\', '\\',
                             automaton_add_state(writer, &escapes->letters));
}

/* ---- character automata --------------------------------------------------------------------- */

static void add_chars_state(struct automaton_writer *writer, const struct char_automaton *automaton,
                            uint32_t from, enum char_writing writing, const uint32_t *states,
                            uint32_t next)
{
    const uint32_t *const row = automaton->next + (size_t)from * automaton->n_class;
    struct move_list moves = {0};
    struct escapes escapes = {0};
    for (uint32_t class = 0, end; class < automaton->n_class; class = end) {
        end = class + 1;
        while (end < automaton->n_class && row[end] == row[class])
            end++;
        if (row[class] == CHAR_NO_STATE) continue;
        const uint32_t low = automaton->class_low[class], high = automaton->class_low[end] - 1;
        if (writing == CHAR_JSON)
            list_json_range(writer, &moves, &escapes, low, high, states[row[class]]);
        else
            automaton_list_range(writer, &moves, low, high, states[row[class]]);
    }
    list_escapes(writer, &moves, &escapes);
    if (automaton->accepts[from]) automaton_list_empty(writer, &moves, next);
    automaton_set_moves(writer, states[from], &moves);
}

uint32_t automaton_add_chars(struct automaton_writer *writer,
                             const struct char_automaton *automaton, enum char_writing writing,
                             uint32_t next)
{
    uint32_t *states = malloc((automaton->n_state + (size_t)1) * sizeof(*states));
    assert(automaton->n_state);
    if (!states) {
        writer->status = LM_E_NO_MEM;
        return STATE_RETURN;
    }
    for (uint32_t i = 0; i < automaton->n_state; i++)
        states[i] = automaton_reserve_state(writer);
    for (uint32_t i = 0; i < automaton->n_state && writer->status == LM_OK; i++)
        add_chars_state(writer, automaton, i, writing, states, next);
    const uint32_t first = states[0];
    free(states);
    return first;
}

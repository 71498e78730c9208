/* Lanes over libcurl's multi interface. */
#include "coordinator/hub/download.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/hub/hub_http.h"
#include "coordinator/hub/part_file.h"
#include "coordinator/hub/part_keeper.h"
#include "proto/base/log.h"

static const double RATE_WINDOW_S = 0.1;
enum { RECEIVE_BYTES = 256 << 10, SEGMENT_MIN = 1 << 20, TICK_MS = 100 };

/* Missing, and not in flight. */
struct todo {
    struct byte_range range;
    unsigned n_failure; /* in a row, of this range */
};

enum file_phase {
    FILE_FETCHING,
    FILE_CHECKING, /* all bytes are there, the keeper has the word */
    FILE_DONE
};

struct fetch {
    struct download_file *file;
    enum file_phase phase;
    struct todo *todo; /* [n_todo] ascending */
    size_t n_todo, n_todo_max;
    char *url;             /* where the endpoint redirects to; NULL: not asked yet */
    bool is_being_located; /* a lane is asking */
    bool ignores_ranges;
    unsigned n_lane; /* that fetch ranges of it */
    unsigned n_restart;
};

struct lane {
    struct download *download;
    CURL *easy;
    struct curl_slist *headers;
    struct hub_head head;
    struct fetch *fetch; /* NULL: idle */
    struct todo todo;    /* the range it asked for */
    uint64_t cursor;     /* the byte of the file that comes next */
    char *url;           /* of this hop */
    unsigned n_redirect;
    bool is_paused;    /* by the limit of the rate */
    bool is_checked;   /* the head of the answer was looked at */
    bool has_progress; /* bytes came that were missing */
    bool is_other_size;
    struct lm_error error; /* of this side: the disk */
    char reason[CURL_ERROR_SIZE];

    unsigned n_failure; /* in a row */
    double failed_s;    /* the first of them */
    double resumes_s;   /* idle until then */
};

struct download {
    const struct download_config *config;
    struct part_keeper *keeper;
    CURLM *multi;
    struct fetch *fetches; /* [n] */
    size_t n, n_done;
    struct lane *lanes; /* [n_connection] */
    double progress_s;  /* when bytes came last */
    double resumes_s;   /* no lane starts before: so said the server */
    double n_allowed;   /* bytes that may come now; below 0 after more came */
    double allowed_s;   /* as of then */
    double tick_s;
};

/* ---- ranges to fetch ---- */

static enum lm_status put_todo(struct fetch *fetch, struct todo todo, struct lm_error *err)
{
    if (todo.range.start >= todo.range.end) return LM_OK;
    if (fetch->n_todo == fetch->n_todo_max) {
        const size_t n_max = fetch->n_todo_max ? 2 * fetch->n_todo_max : 16;
        struct todo *grown = realloc(fetch->todo, n_max * sizeof(*grown));
        if (!grown) return lm_fail(err, LM_E_NO_MEM, "no memory for a list of ranges");
        fetch->todo = grown;
        fetch->n_todo_max = n_max;
    }
    size_t i = fetch->n_todo++;
    for (; i && fetch->todo[i - 1].range.start > todo.range.start; i--)
        fetch->todo[i] = fetch->todo[i - 1];
    fetch->todo[i] = todo;
    return LM_OK;
}

/* All that the part file lacks. */
static enum lm_status plan(struct fetch *fetch, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    struct byte_range gap;
    fetch->n_todo = 0;
    fetch->phase = FILE_FETCHING;
    for (uint64_t at = 0; status == LM_OK && part_file_next_gap(fetch->file->part, at, &gap);
         at = gap.end)
        status = put_todo(fetch, (struct todo){.range = gap}, err);
    return status;
}

/* Ranges get smaller towards the end, so that no lane is left alone with a long one. */
static uint64_t segment_bytes(const struct download *download)
{
    uint64_t n_left = 0;
    for (size_t i = 0; i < download->n; i++)
        for (size_t t = 0; t < download->fetches[i].n_todo; t++)
            n_left +=
                download->fetches[i].todo[t].range.end - download->fetches[i].todo[t].range.start;
    const uint64_t most = download->config->segment_bytes;
    const uint64_t least = most < SEGMENT_MIN ? most : SEGMENT_MIN;
    const uint64_t share = n_left / (2 * download->config->n_connection);
    return share > most ? most : share < least ? least : share;
}

static bool take_todo(struct download *download, struct fetch *fetch, bool only_head,
                      struct lane *lane)
{
    if (only_head && fetch->n_todo && fetch->todo[0].range.start >= fetch->file->head_bytes)
        return false;
    if (fetch->phase != FILE_FETCHING || !fetch->n_todo || fetch->is_being_located ||
        (fetch->ignores_ranges && fetch->n_lane))
        return false;
    const uint64_t n_max = segment_bytes(download);
    struct todo *first = &fetch->todo[0];
    lane->todo = *first;
    if (fetch->ignores_ranges) {
        lane->todo.range = (struct byte_range){0, part_file_size(fetch->file->part)};
        fetch->n_todo = 0;
    } else if (first->range.end - first->range.start > n_max) {
        first->range.start += n_max;
        lane->todo.range.end = first->range.start;
    } else {
        memmove(first, first + 1, --fetch->n_todo * sizeof(*first));
    }
    lane->fetch = fetch;
    fetch->n_lane++;
    return true;
}

/* Whether it asks for all of the file. */
static bool is_stream(const struct lane *lane)
{
    return lane->todo.range.start == 0 &&
           lane->todo.range.end == part_file_size(lane->fetch->file->part);
}

/* ---- what comes ---- */

/* Writes bytes of the file from lane->cursor on, as far as they are missing. */
static enum lm_status store(struct lane *lane, const char *bytes, size_t n)
{
    struct part_file *part = lane->fetch->file->part;
    const uint64_t end = lane->cursor + n;
    struct byte_range gap;
    while (lane->cursor < end) {
        if (!part_file_next_gap(part, lane->cursor, &gap) || gap.start >= end) {
            lane->cursor = end;
            break;
        }
        const char *from = bytes + (n - (size_t)(end - gap.start));
        if (gap.end > end) gap.end = end;
        const enum lm_status status =
            part_file_write(part, gap.start, from, (size_t)(gap.end - gap.start), &lane->error);
        if (status != LM_OK) return status;
        lane->cursor = gap.end;
        lane->has_progress = true;
    }
    return LM_OK;
}

/* Looks at the head of an answer once its body begins; false: the body is not wanted. */
static bool check_head(struct lane *lane, long code)
{
    struct fetch *fetch = lane->fetch;
    const int64_t n_bytes = (int64_t)part_file_size(fetch->file->part);
    const struct hub_head *head = &lane->head;
    curl_off_t length = -1;
    lane->is_checked = true;
    if (code == 206) {
        if (head->range_all >= 0 && head->range_all != n_bytes) lane->is_other_size = true;
        return !lane->is_other_size && head->range_start == (int64_t)lane->todo.range.start &&
               head->range_end <= (int64_t)lane->todo.range.end;
    }
    curl_easy_getinfo(lane->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    if (length >= 0 && length != n_bytes) lane->is_other_size = true;
    if (lane->is_other_size) return false;
    if (is_stream(lane)) return true;
    if (fetch->ignores_ranges) return false; /* another lane has found out */
    fetch->ignores_ranges = true;
    fetch->n_todo = 0;
    lane->todo.range = (struct byte_range){0, (uint64_t)n_bytes};
    lane->cursor = 0;
    return true;
}

/* Where one range was given, the others are. */
static void note_location(struct lane *lane)
{
    struct fetch *fetch = lane->fetch;
    if (!fetch->url) fetch->url = strdup(lane->url);
    fetch->is_being_located = false;
}

static size_t on_bytes(char *bytes, size_t size, size_t n_item, void *context)
{
    struct lane *lane = context;
    struct fetch *fetch = lane->fetch;
    const size_t n = size * n_item;
    long code = 0;
    if (lane->download->config->rate_bytes) {
        lane->is_paused = lane->download->n_allowed <= 0;
        if (lane->is_paused) return CURL_WRITEFUNC_PAUSE; /* the same bytes come again */
        lane->download->n_allowed -= (double)n;
    }
    curl_easy_getinfo(lane->easy, CURLINFO_RESPONSE_CODE, &code);
    if (code != 200 && code != 206) return n; /* what a redirect or an error says */
    if (!lane->is_checked) {
        if (!check_head(lane, code)) return 0;
        note_location(lane);
    }
    fetch->file->n_fetched += n;
    if (lane->cursor + n > lane->todo.range.end) {
        lane->is_other_size = code == 200;
        return 0;
    }
    if (store(lane, bytes, n) != LM_OK) return 0;
    lane->download->progress_s = log_now_s();
    part_keeper_wake(lane->download->keeper);
    return n;
}

/* ---- lanes ---- */

static enum lm_status request(struct lane *lane, struct lm_error *err)
{
    struct download *download = lane->download;
    const struct download_config *config = download->config;
    char range[64];
    const enum lm_status status =
        hub_http_prepare(config->http, lane->easy, lane->url, &lane->headers, &lane->head, err);
    if (status != LM_OK) return status;
    lane->is_checked = lane->has_progress = lane->is_other_size = lane->is_paused = false;
    lane->cursor = lane->todo.range.start;
    lane->error = (struct lm_error){0};
    lane->reason[0] = '\0';
    snprintf(range, sizeof(range), "%llu-%llu", (unsigned long long)lane->todo.range.start,
             (unsigned long long)lane->todo.range.end - 1);
    curl_easy_setopt(lane->easy, CURLOPT_RANGE, range);
    curl_easy_setopt(lane->easy, CURLOPT_BUFFERSIZE, (long)RECEIVE_BYTES);
    curl_easy_setopt(lane->easy, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(lane->easy, CURLOPT_WRITEDATA, lane);
    curl_easy_setopt(lane->easy, CURLOPT_PRIVATE, lane);
    curl_easy_setopt(lane->easy, CURLOPT_ERRORBUFFER, lane->reason);
    return curl_multi_add_handle(download->multi, lane->easy)
               ? lm_fail(err, LM_E_NO_MEM, "no memory for a request")
               : LM_OK;
}

static enum lm_status set_url(struct lane *lane, const char *url, struct lm_error *err)
{
    char *copy = strdup(url);
    free(lane->url);
    lane->url = copy;
    return copy ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for a URL");
}

static enum lm_status start_lane(struct lane *lane, struct lm_error *err)
{
    struct fetch *fetch = lane->fetch;
    lane->n_redirect = 0;
    fetch->is_being_located = !fetch->url;
    const enum lm_status status = set_url(lane, fetch->url ? fetch->url : fetch->file->url, err);
    return status == LM_OK ? request(lane, err) : status;
}

/* The lane gives back what it did not bring. */
static enum lm_status leave_fetch(struct lane *lane, bool failed, struct lm_error *err)
{
    struct fetch *fetch = lane->fetch;
    struct todo rest = {.range = {lane->cursor, lane->todo.range.end}};
    if (failed) rest.n_failure = lane->has_progress ? 1 : lane->todo.n_failure + 1;
    if (!fetch->url) fetch->is_being_located = false;
    lane->fetch = NULL;
    fetch->n_lane--;
    if (!fetch->ignores_ranges) return put_todo(fetch, rest, err);
    /* only a lane that has all from the start on counts now */
    if (fetch->n_lane) return LM_OK;
    const unsigned n_failure = rest.n_failure;
    const enum lm_status status = plan(fetch, err);
    if (fetch->n_todo) fetch->todo[0].n_failure = n_failure;
    return status;
}

/* Ends what other lanes do for this file, whose bytes are of no use any more. */
static enum lm_status stop_lanes(struct download *download, const struct fetch *fetch,
                                 const struct lane *but, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (uint32_t i = 0; i < download->config->n_connection && status == LM_OK; i++) {
        struct lane *lane = &download->lanes[i];
        if (lane == but || lane->fetch != fetch) continue;
        curl_multi_remove_handle(download->multi, lane->easy);
        status = leave_fetch(lane, false, err);
    }
    return status;
}

/* A file that is not what it should be starts over, once. */
static enum lm_status restart(struct download *download, struct fetch *fetch, const char *why,
                              struct lm_error *err)
{
    if (!download->config->restarts) /* somebody has it open, so it stays as it is */
        return lm_fail(err, LM_E_FORMAT, "%s: %s", fetch->file->name, why);
    const size_t i = (size_t)(fetch - download->fetches);
    enum lm_status status = stop_lanes(download, fetch, NULL, err);
    part_keeper_add(download->keeper, i, NULL, NULL); /* it must not read what goes */
    if (status == LM_OK) status = part_file_discard(fetch->file->part, err);
    if (status != LM_OK) return status;
    if (fetch->n_restart++)
        return lm_fail(err, LM_E_FORMAT, "%s: %s, also when it was fetched again",
                       fetch->file->name, why);
    download->config->on_restart(download->config->context, i, why);
    free(fetch->url);
    fetch->url = NULL;
    fetch->is_being_located = fetch->ignores_ranges = false;
    part_keeper_add(download->keeper, i, fetch->file->part, fetch->file->hash);
    return plan(fetch, err);
}

/* ---- how a request ended ---- */

/* Whether the answer is of the storage that the endpoint led to. */
static bool is_of_storage(const struct lane *lane)
{
    return strcmp(lane->url, lane->fetch->file->url) != 0;
}

static enum lm_status fail_lane(struct lane *lane, CURLcode result, long code, double wait_s,
                                struct lm_error *err)
{
    struct fetch *fetch = lane->fetch;
    struct download *download = lane->download;
    const char *name = fetch->file->name;
    const char *reason = lane->reason[0]      ? lane->reason
                         : result == CURLE_OK ? "the answer is not what was asked for"
                                              : curl_easy_strerror(result);
    const double now_s = log_now_s();
    char text[CURL_ERROR_SIZE + 64];
    if (code)
        snprintf(text, sizeof(text), "the server answers %ld", code);
    else
        snprintf(text, sizeof(text), "%s", reason);
    if (lane->has_progress) lane->n_failure = 0;
    if (!lane->n_failure++) lane->failed_s = now_s;
    lane->resumes_s = now_s + wait_s;
    if (lane->head.retry_after_s > 0)
        download->resumes_s = fmax(download->resumes_s, now_s + wait_s);
    const bool is_range_at_fault = code != 429 && code != 503;
    const unsigned n_of_range = lane->has_progress ? 0 : lane->todo.n_failure + 1;
    if ((lane->n_failure >= HUB_FAILURES_MAX && download->progress_s < lane->failed_s) ||
        (is_range_at_fault && n_of_range >= HUB_FAILURES_MAX))
        return lm_fail(err, LM_E_NETWORK, "%s: gave up after %d failures without progress: %s",
                       name, HUB_FAILURES_MAX, text);
    hub_http_say_wait(name, text, wait_s);
    return leave_fetch(lane, is_range_at_fault, err);
}

/* The URL that the endpoint led to is no longer good. The first time it is asked again at once. */
static enum lm_status expire(struct lane *lane, long code, struct lm_error *err)
{
    struct fetch *fetch = lane->fetch;
    if (fetch->url && !strcmp(fetch->url, lane->url)) {
        free(fetch->url);
        fetch->url = NULL;
    }
    const struct hub_head none = {.retry_after_s = -1};
    const unsigned n = lane->has_progress ? 0 : lane->n_failure;
    const double wait_s = n ? hub_http_wait_s(lane->download->config->http, n, &none) : 0;
    return fail_lane(lane, CURLE_OK, code, wait_s, err);
}

static enum lm_status follow(struct lane *lane, struct lm_error *err)
{
    char *next;
    if (++lane->n_redirect > HUB_REDIRECTS_MAX)
        return lm_fail(err, LM_E_NETWORK, "%s: more than %d redirects", lane->fetch->file->name,
                       HUB_REDIRECTS_MAX);
    const enum lm_status status = hub_http_redirect(lane->url, &lane->head, &next, err);
    if (status != LM_OK) return status;
    free(lane->url);
    lane->url = next;
    return request(lane, err);
}

/* A redirect tells how large the file is that it leads to. */
static bool is_linked_to_other_size(const struct lane *lane)
{
    const int64_t n_bytes = lane->head.linked_bytes;
    return n_bytes >= 0 && (uint64_t)n_bytes != part_file_size(lane->fetch->file->part);
}

static enum lm_status finish_request(struct lane *lane, CURLcode result, struct lm_error *err)
{
    struct download *download = lane->download;
    const struct hub_http *http = download->config->http;
    struct fetch *fetch = lane->fetch;
    long code = 0;
    curl_easy_getinfo(lane->easy, CURLINFO_RESPONSE_CODE, &code);
    if (lane->error.status != LM_OK) {
        *err = lane->error;
        return err->status;
    }
    if (lane->is_other_size || code == 416 || is_linked_to_other_size(lane))
        return restart(download, fetch, "its size is not what the hub said", err);
    const bool has_bytes = code == 200 || code == 206;
    /* one that ends too soon counts if it brought something, else it could come for ever */
    const bool is_whole = lane->cursor == lane->todo.range.end;
    if (has_bytes && result == CURLE_OK && (is_whole || lane->has_progress)) {
        lane->n_failure = 0;
        return leave_fetch(lane, false, err);
    }
    if (code == 200 && fetch->ignores_ranges && !is_stream(lane))
        return leave_fetch(lane, false, err);
    if (result == CURLE_OK && code >= 300 && code < 400) return follow(lane, err);
    if (result == CURLE_OK && is_of_storage(lane) && (code == 401 || code == 403 || code == 410))
        return expire(lane, code, err);
    /* an answer that was cut off, that is empty, or of another range, may be better next time */
    const bool is_odd = has_bytes && (result == CURLE_OK || result == CURLE_WRITE_ERROR);
    if (is_odd || hub_http_is_passing(result, code) || (code && is_of_storage(lane))) {
        const unsigned n = lane->has_progress ? 1 : lane->n_failure + 1;
        const long shown = result == CURLE_OK && !has_bytes ? code : 0;
        return fail_lane(lane, result, shown, hub_http_wait_s(http, n, &lane->head), err);
    }
    if (code) return hub_http_fail(http, code, &lane->head, fetch->file->name, err);
    return lm_fail(err, LM_E_NETWORK, "%s: %s", fetch->file->name,
                   lane->reason[0] ? lane->reason : curl_easy_strerror(result));
}

static enum lm_status finish_requests(struct download *download, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    const CURLMsg *message;
    int n_left;
    while (status == LM_OK && (message = curl_multi_info_read(download->multi, &n_left))) {
        struct lane *lane = NULL;
        const CURLcode result = message->data.result;
        if (message->msg != CURLMSG_DONE) continue;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&lane);
        curl_multi_remove_handle(download->multi, lane->easy);
        if (lane->fetch) status = finish_request(lane, result, err);
    }
    return status;
}

/* ---- the loop ---- */

/* Once a stream of a whole file has begun, what other lanes bring of it only takes bandwidth. */
static enum lm_status leave_streams_alone(struct download *download, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (uint32_t i = 0; i < download->config->n_connection && status == LM_OK; i++) {
        struct lane *lane = &download->lanes[i];
        const struct fetch *fetch = lane->fetch;
        if (fetch && fetch->ignores_ranges && fetch->n_lane > 1 && is_stream(lane))
            status = stop_lanes(download, fetch, lane, err);
    }
    return status;
}

/* Lets bytes come as the limit of the rate allows; what was not used is not saved up for long. */
static void refill(struct download *download)
{
    const double now_s = log_now_s(), rate = (double)download->config->rate_bytes;
    download->n_allowed += rate * (now_s - download->allowed_s);
    download->n_allowed = fmin(download->n_allowed, rate * RATE_WINDOW_S);
    download->allowed_s = now_s;
    for (uint32_t i = 0; i < download->config->n_connection && download->n_allowed > 0; i++) {
        struct lane *lane = &download->lanes[i];
        if (!lane->fetch || !lane->is_paused) continue;
        lane->is_paused = false;
        curl_easy_pause(lane->easy, CURLPAUSE_CONT);
    }
}

static bool find_todo(struct download *download, bool only_head, struct lane *lane)
{
    for (size_t i = 0; i < download->n; i++)
        if (take_todo(download, &download->fetches[i], only_head, lane)) return true;
    return false;
}

static enum lm_status start_lanes(struct download *download, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    const double now_s = log_now_s();
    for (uint32_t i = 0; i < download->config->n_connection && status == LM_OK; i++) {
        struct lane *lane = &download->lanes[i];
        if (lane->fetch || now_s < fmax(lane->resumes_s, download->resumes_s)) continue;
        if (find_todo(download, true, lane) || find_todo(download, false, lane))
            status = start_lane(lane, err);
    }
    return status;
}

/* Files whose bytes are all there: what the keeper says of them. */
static enum lm_status conclude_files(struct download *download, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < download->n && status == LM_OK; i++) {
        struct fetch *fetch = &download->fetches[i];
        enum part_verdict verdict;
        if (fetch->phase == FILE_FETCHING && !fetch->n_todo && !fetch->n_lane)
            fetch->phase = FILE_CHECKING;
        if (fetch->phase != FILE_CHECKING) continue;
        status = part_keeper_verdict(download->keeper, i, &verdict, err);
        if (status != LM_OK) break;
        if (verdict == PART_BAD) {
            status = restart(download, fetch, "its hash is not what the hub said", err);
        } else if (verdict == PART_GOOD) {
            fetch->phase = FILE_DONE;
            download->n_done++;
            status = download->config->on_done(download->config->context, i, err);
        }
    }
    return status;
}

static enum lm_status tick(struct download *download, struct lm_error *err)
{
    const double now_s = log_now_s();
    const struct hub_http *http = download->config->http;
    enum part_verdict verdict;
    if (http->is_interrupted && *http->is_interrupted)
        return lm_fail(err, LM_E_INTERRUPTED, "interrupted");
    if (now_s - download->tick_s < TICK_MS * 1e-3) return LM_OK;
    download->tick_s = now_s;
    /* a full disk shows itself at a sync, too */
    const enum lm_status status = part_keeper_verdict(download->keeper, 0, &verdict, err);
    return status == LM_OK ? download->config->on_tick(download->config->context, err) : status;
}

static enum lm_status fetch_all(struct download *download, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    struct curl_waitfd wake = {.fd = download->config->http->wake_fd, .events = CURL_WAIT_POLLIN};
    while (status == LM_OK && download->n_done < download->n) {
        int n_running;
        status = tick(download, err);
        if (status == LM_OK) status = start_lanes(download, err);
        if (status != LM_OK) break;
        if (download->config->rate_bytes) refill(download);
        curl_multi_perform(download->multi, &n_running);
        status = finish_requests(download, err);
        if (status == LM_OK) status = leave_streams_alone(download, err);
        if (status == LM_OK) status = conclude_files(download, err);
        if (status == LM_OK && download->n_done < download->n)
            curl_multi_poll(download->multi, &wake, wake.fd >= 0,
                            n_running && !download->config->rate_bytes ? TICK_MS : 10, NULL);
    }
    return status;
}

static enum lm_status open_lanes(struct download *download, struct lm_error *err)
{
    download->multi = curl_multi_init();
    download->lanes = calloc(download->config->n_connection, sizeof(*download->lanes));
    if (!download->multi || !download->lanes)
        return lm_fail(err, LM_E_NO_MEM, "no memory for a download");
    for (uint32_t i = 0; i < download->config->n_connection; i++) {
        download->lanes[i].download = download;
        download->lanes[i].easy = curl_easy_init();
        if (!download->lanes[i].easy) return lm_fail(err, LM_E_NO_MEM, "no memory for a download");
    }
    return LM_OK;
}

static void close_lanes(struct download *download)
{
    for (uint32_t i = 0; download->lanes && i < download->config->n_connection; i++) {
        struct lane *lane = &download->lanes[i];
        if (lane->fetch) curl_multi_remove_handle(download->multi, lane->easy);
        curl_easy_cleanup(lane->easy);
        curl_slist_free_all(lane->headers);
        hub_head_clear(&lane->head);
        free(lane->url);
    }
    curl_multi_cleanup(download->multi);
    free(download->lanes);
}

static enum lm_status open_fetches(struct download *download, struct download_file *files,
                                   struct lm_error *err)
{
    enum lm_status status = LM_OK;
    download->fetches = calloc(download->n + 1, sizeof(*download->fetches));
    if (!download->fetches) return lm_fail(err, LM_E_NO_MEM, "no memory for a download");
    for (size_t i = 0; i < download->n && status == LM_OK; i++) {
        download->fetches[i].file = &files[i];
        part_keeper_add(download->keeper, i, files[i].part, files[i].hash);
        status = plan(&download->fetches[i], err);
    }
    return status;
}

enum lm_status download_run(struct download_file *files, size_t n,
                            const struct download_config *config, struct lm_error *err)
{
    struct download download = {
        .config = config, .n = n, .progress_s = log_now_s(), .allowed_s = log_now_s()};
    if (!n) return LM_OK;
    assert(config->n_connection > 0);
    enum lm_status status = part_keeper_start(&download.keeper, n, err);
    if (status != LM_OK) return status;
    status = open_lanes(&download, err);
    if (status == LM_OK) status = open_fetches(&download, files, err);
    if (status == LM_OK) status = fetch_all(&download, err);
    close_lanes(&download);
    const enum lm_status stopped = part_keeper_stop(download.keeper, status == LM_OK ? err : NULL);
    for (size_t i = 0; download.fetches && i < n; i++) {
        free(download.fetches[i].todo);
        free(download.fetches[i].url);
    }
    free(download.fetches);
    return status == LM_OK ? stopped : status;
}

/*
 * load: sends requests to a policy server as fast as it answers, over N connections with one request in flight on
 * each, as Postfix does (https://www.postfix.org/SMTPD_POLICY_README.html). Prints a report in one line of JSON.
 *
 * It takes the requests from a file, in turn. Before each request is a line `expect=VERB`, which is not sent; an answer
 * with another verb counts as wrong. Each request counts as answered, as lost with a connection that the server
 * closed, or as unanswered when time was up. Latencies are those of requests sent after the warm-up.
 *
 * With -t each latency is written to a file as two 64-bit integers: the time of the answer (CLOCK_MONOTONIC) and the
 * latency, both in nanoseconds.
 *
 * It ends by itself, after the warm-up, the seconds of -d, and at most DRAIN seconds for requests still in flight.
 * SIGTERM ends it early, with the same report.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "address.h"

#define SECOND 1000000000ull
#define DRAIN 5 /* seconds for requests in flight at the end */
#define MAX_SECONDS 600 /* of one run, so that a failed test never leaves a load on the machine */
#define MAX_ANSWER 4096

static const char *const verbs[] = {"DUNNO", "REJECT", "DEFER", "DEFER_IF_PERMIT", "other"};
enum { OTHER = 4, VERBS };

struct request {
    const char *text;
    uint32_t length;
    uint8_t expected;
};

struct connection {
    int socket;                  /* -1: the server refused it */
    const struct request *request; /* NULL: nothing is in flight */
    uint64_t sent;
    size_t have;
    char answer[MAX_ANSWER];
};

struct latency {
    uint64_t answered;
    uint64_t took;
};

static struct address server;
static int poller;
static struct request *requests;
static size_t request_count, next_request;
static struct latency *latencies;
static size_t latency_count, latency_room;
static uint64_t answered, by_verb[VERBS], wrong, closed, refused, in_flight;

static volatile sig_atomic_t stop_requested;

static void request_stop(int number)
{
    (void)number;
    stop_requested = 1;
}

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void *resized(void *memory, size_t bytes)
{
    memory = realloc(memory, bytes);
    if (!memory)
        must(-1, "realloc");
    return memory;
}

/* --- Requests ------------------------------------------------------------------------------------------------ */

/* The verb at the beginning of a text, up to a blank or the end of the line. */
static uint8_t verb_of(const char *text, size_t length)
{
    size_t end = 0;
    uint8_t verb = 0;

    while (end < length && text[end] != ' ' && text[end] != '\n')
        end++;
    while (verb < OTHER && (strlen(verbs[verb]) != end || memcmp(verbs[verb], text, end)))
        verb++;
    return verb;
}

static void read_requests(const char *path)
{
    struct stat status;
    int file = must(open(path, O_RDONLY), path);

    must(fstat(file, &status), path);
    char *text = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (text == MAP_FAILED)
        must(-1, path);
    size_t room = 0;
    for (const char *at = text, *stop = text + status.st_size; at < stop;) {
        const char *begin = memchr(at, '\n', stop - at), *end = memmem(at, stop - at, "\n\n", 2);
        if (strncmp(at, "expect=", 7) || !end || begin == end) {
            fprintf(stderr, "%s: request %zu: not expect=VERB, attributes, an empty line\n", path, request_count + 1);
            exit(2);
        }
        if (request_count == room)
            requests = resized(requests, (room = room ? 2 * room : 4096) * sizeof *requests);
        requests[request_count++] = (struct request){begin + 1, end + 2 - (begin + 1), verb_of(at + 7, stop - at - 7)};
        at = end + 2;
    }
}

/* --- Connections --------------------------------------------------------------------------------------------- */

static void ask(struct connection *connection)
{
    connection->request = &requests[next_request++ % request_count];
    connection->have = 0;
    connection->sent = now();
    in_flight++;
    ssize_t sent = write(connection->socket, connection->request->text, connection->request->length);
    /* If the connection is gone, the next read fails. */
    if (sent >= 0 && (size_t)sent < connection->request->length) {
        fprintf(stderr, "the server does not read a request of %u bytes\n", connection->request->length);
        exit(2);
    }
}

static void open_connection(struct connection *connection)
{
    connection->socket = must(socket(server.socket.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    if (connect(connection->socket, &server.socket.any, server.length) < 0) {
        refused++;
        close(connection->socket);
        connection->socket = -1;
        return;
    }
    fcntl(connection->socket, F_SETFL, O_NONBLOCK);
    send_at_once(connection->socket);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    must(epoll_ctl(poller, EPOLL_CTL_ADD, connection->socket, &event), "epoll_ctl");
}

/* Counts an answer that has arrived completely. */
static void take(struct connection *connection, uint64_t measured_from)
{
    uint64_t time = now();
    const char *answer = connection->answer;
    uint8_t verb = strncmp(answer, "action=", 7) ? OTHER : verb_of(answer + 7, connection->have - 7);

    answered++;
    by_verb[verb]++;
    wrong += verb == OTHER || verb != connection->request->expected;
    in_flight--;
    connection->request = NULL;
    if (connection->sent < measured_from)
        return;
    if (latency_count == latency_room)
        latencies = resized(latencies, (latency_room = latency_room ? 2 * latency_room : 1 << 16) * sizeof *latencies);
    latencies[latency_count++] = (struct latency){time, time - connection->sent};
}

/* Reads what has arrived; returns whether the connection can send another request. */
static int receive(struct connection *connection, uint64_t measured_from)
{
    ssize_t got = read(connection->socket, connection->answer + connection->have, MAX_ANSWER - connection->have);

    if (got < 0 && errno == EAGAIN)
        return 0;
    if (got <= 0 || connection->have + got == MAX_ANSWER) {
        closed++;
        in_flight -= connection->request != NULL;
        connection->request = NULL;
        close(connection->socket);
        open_connection(connection);
        return connection->socket >= 0;
    }
    connection->have += got;
    if (connection->have < 2 || memcmp(connection->answer + connection->have - 2, "\n\n", 2))
        return 0;
    take(connection, measured_from);
    return 1;
}

/* --- The report ---------------------------------------------------------------------------------------------- */

static int by_duration(const void *first, const void *second)
{
    uint64_t a = ((const struct latency *)first)->took, b = ((const struct latency *)second)->took;

    return a < b ? -1 : a > b;
}

static double microseconds(double share)
{
    return latency_count ? latencies[(size_t)(share * (latency_count - 1))].took / 1e3 : 0;
}

static void report(size_t connections, double seconds)
{
    printf("{\"connections\": %zu, \"answered\": %lu, \"measured\": %zu, \"seconds\": %.3f, \"per_second\": %.0f, ",
           connections, answered, latency_count, seconds, latency_count / seconds);
    qsort(latencies, latency_count, sizeof *latencies, by_duration);
    printf("\"latency_us\": {\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f}, ",
           microseconds(.5), microseconds(.9), microseconds(.99), microseconds(.999), microseconds(1));
    printf("\"actions\": {");
    for (int verb = 0; verb < VERBS; verb++)
        printf("%s\"%s\": %lu", verb ? ", " : "", verbs[verb], by_verb[verb]);
    printf("}, \"wrong\": %lu, \"closed\": %lu, \"refused\": %lu, \"unanswered\": %lu, \"passes\": %zu}\n", wrong, closed,
           refused, in_flight, (next_request + request_count - 1) / request_count);
}

int main(int argc, char **argv)
{
    size_t connections = 50;
    double seconds = 5, warm_up = .5;
    const char *where = NULL, *path = NULL, *trace = NULL;
    struct epoll_event ready[256];

    for (int option; (option = getopt(argc, argv, "a:c:d:f:t:w:")) != -1;)
        switch (option) {
        case 'a': where = optarg; break;
        case 'c': connections = strtoul(optarg, NULL, 10); break;
        case 'd': seconds = strtod(optarg, NULL); break;
        case 'f': path = optarg; break;
        case 't': trace = optarg; break;
        case 'w': warm_up = strtod(optarg, NULL); break;
        default: where = NULL; optind = argc + 1;
        }
    if (!where || !path || optind != argc || seconds + warm_up > MAX_SECONDS || !connections || connections > 60000) {
        fprintf(stderr, "usage: load -a ADDRESS -f REQUESTS [-c connections] [-d seconds] [-w warm-up seconds] "
                        "[-t trace file]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, request_stop);
    alarm(MAX_SECONDS + 2 * DRAIN);
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){65536, 65536});
    server = address_of(where);
    read_requests(path);
    if (!request_count) {
        fprintf(stderr, "%s: no requests\n", path);
        return 2;
    }
    poller = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    struct connection *all = resized(NULL, connections * sizeof *all);
    uint64_t measured_from = now() + (uint64_t)(warm_up * SECOND);
    uint64_t stop = measured_from + (uint64_t)(seconds * SECOND), give_up = stop + DRAIN * SECOND;
    for (size_t i = 0; i < connections; i++) {
        open_connection(&all[i]);
        if (all[i].socket >= 0)
            ask(&all[i]);
    }
    for (uint64_t time; in_flight && (time = now()) < give_up;) {
        if (stop_requested && time < stop) {
            stop = time;
            give_up = stop + DRAIN * SECOND;
        }
        int count = epoll_wait(poller, ready, 256, 100);
        for (int i = 0; i < count; i++) {
            struct connection *connection = ready[i].data.ptr;
            if (receive(connection, measured_from) && time < stop)
                ask(connection);
        }
    }
    uint64_t last = latency_count ? latencies[latency_count - 1].answered : now();
    if (trace) {
        FILE *file = fopen(trace, "wb");
        if (!file || fwrite(latencies, sizeof *latencies, latency_count, file) != latency_count || fclose(file))
            must(-1, trace);
    }
    report(connections, (last > measured_from ? last - measured_from : 1) / 1e9);
    return 0;
}

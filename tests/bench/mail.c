/*
 * mail: sends messages to an SMTP server over N sessions at a time, one message in each, as most senders do. Prints a
 * report in one line of JSON. XCLIENT gives each message the address and name of the next client in a file of lines
 * `ADDRESS NAME` (https://www.postfix.org/XCLIENT_README.html).
 *
 * A session counts as failed if it ends before the server has accepted the message. The program ends by itself: after
 * all messages, or after MAX_SECONDS.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "address.h"

#define MAX_SECONDS 120 /* of one run, so that a failed test never leaves a load on the machine */
#define MAX_SESSIONS 1000
#define MAX_REPLY 4096

#define LINE "One line of a message that is not long, and says nothing that anybody needs to read.\r\n"
#define LINES LINE LINE LINE LINE LINE LINE LINE LINE LINE LINE LINE LINE
#define MESSAGE "From: <sender@sender.example>\r\nTo: <someone@field.example>\r\nSubject: benchmark\r\n\r\n" LINES ".\r\n"

/* The code that the server must send, and the line to send then; %1$s is the client's address, %2$s its name. */
static const struct {
    const char *reply;
    const char *send;
} steps[] = {
    {"220", "EHLO client.example\r\n"},
    {"250", "XCLIENT ADDR=%1$s NAME=%2$s REVERSE_NAME=%2$s\r\n"},
    {"220", "EHLO client.example\r\n"},
    {"250", "MAIL FROM:<sender@sender.example>\r\n"},
    {"250", "RCPT TO:<someone@field.example>\r\n"},
    {"250", "DATA\r\n"},
    {"354", MESSAGE},
    {"250", "QUIT\r\n"},
    {"221", NULL},
};
#define TAKEN 8 /* the step after the server has accepted the message */

struct session {
    int socket;
    size_t step, have;
    const char *address, *name;
    char reply[MAX_REPLY];
};

static struct address server;
static int poller;
static char **clients;
static size_t client_count, next_client, to_send, taken, failed, in_progress;

static void read_clients(const char *path)
{
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t size = 0;

    if (!file)
        must(-1, path);
    for (ssize_t length; (length = getline(&line, &size, file)) > 0; line = NULL) {
        char *blank = strchr(line, ' ');
        if (!blank) {
            fprintf(stderr, "%s: not ADDRESS NAME: %s", path, line);
            exit(2);
        }
        *blank = line[length - 1] = 0;
        if (!(clients = realloc(clients, (client_count + 1) * sizeof *clients)))
            must(-1, "realloc");
        clients[client_count++] = line;
    }
    fclose(file);
}

static void begin(struct session *session)
{
    char *client = clients[next_client++ % client_count];

    session->step = session->have = 0;
    session->address = client;
    session->name = client + strlen(client) + 1;
    session->socket = must(socket(server.socket.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    must(connect(session->socket, &server.socket.any, server.length), "connect");
    send_at_once(session->socket);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = session};
    must(epoll_ctl(poller, EPOLL_CTL_ADD, session->socket, &event), "epoll_ctl");
    in_progress++;
    to_send--;
}

static void end(struct session *session)
{
    if (session->step >= TAKEN)
        taken++;
    else
        failed++;
    close(session->socket);
    in_progress--;
    if (to_send)
        begin(session);
}

/* Whether the last line of a reply has arrived: its code is followed by a blank, not by a hyphen. */
static int is_complete(const struct session *session)
{
    if (session->have < 5 || session->reply[session->have - 1] != '\n')
        return 0;
    const char *before = memrchr(session->reply, '\n', session->have - 1);
    return (before ? before + 1 : session->reply)[3] == ' ';
}

static void proceed(struct session *session)
{
    char line[sizeof MESSAGE + 1024];
    ssize_t got = read(session->socket, session->reply + session->have, MAX_REPLY - 1 - session->have);

    if (got <= 0) {
        end(session);
        return;
    }
    session->have += got;
    if (!is_complete(session))
        return;
    session->have = 0;
    if (strncmp(session->reply, steps[session->step].reply, 3) || !steps[session->step].send) {
        end(session);
        return;
    }
    /* The format comes from the table above, so it is safe. */
    int length = snprintf(line, sizeof line, steps[session->step].send, session->address, session->name);
    session->step++;
    if (write(session->socket, line, length) != length)
        end(session);
}

int main(int argc, char **argv)
{
    size_t sessions = 20;
    const char *where = NULL, *path = NULL;
    struct epoll_event ready[64];
    struct timespec began, ended;

    for (int option; (option = getopt(argc, argv, "a:f:n:s:")) != -1;)
        switch (option) {
        case 'a': where = optarg; break;
        case 'f': path = optarg; break;
        case 'n': to_send = strtoul(optarg, NULL, 10); break;
        case 's': sessions = strtoul(optarg, NULL, 10); break;
        default: where = NULL; optind = argc + 1;
        }
    if (!where || !path || optind != argc || !to_send || !sessions || sessions > MAX_SESSIONS) {
        fprintf(stderr, "usage: mail -a ADDRESS -f CLIENTS -n messages [-s sessions]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    alarm(MAX_SECONDS);
    server = address_of(where);
    read_clients(path);
    if (!client_count) {
        fprintf(stderr, "%s: no clients\n", path);
        return 2;
    }
    poller = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    struct session *all = calloc(sessions, sizeof *all);
    if (!all)
        must(-1, "calloc");
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (size_t i = 0; i < sessions && to_send; i++)
        begin(&all[i]);
    while (in_progress) {
        int count = epoll_wait(poller, ready, 64, -1);
        for (int i = 0; i < count; i++)
            proceed(ready[i].data.ptr);
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    double seconds = ended.tv_sec - began.tv_sec + (ended.tv_nsec - began.tv_nsec) / 1e9;
    printf("{\"taken\": %zu, \"failed\": %zu, \"seconds\": %.3f, \"per_second\": %.1f}\n", taken, failed, seconds,
           taken / seconds);
    return 0;
}

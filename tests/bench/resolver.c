/*
 * resolver PORT MILLISECONDS: a DNS server on 127.0.0.1 that delays each answer by MILLISECONDS. Every IPv4 address has
 * a name that verifies: the PTR record of 4.3.2.1.in-addr.arpa is h-1-2-3-4.clients.example, whose A record is 1.2.3.4
 * (RFC 1035). Nothing else exists. The server itself takes almost no time, so a lookup waits only for the delay.
 *
 * It ends by itself after MAX_SECONDS.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include "address.h"

#define MAX_SECONDS 900
#define MILLISECOND 1000000ull
#define MAX_WAITING 65536 /* delayed answers; a query beyond them is dropped, as by any overloaded server */
#define MAX_MESSAGE 512   /* bytes without EDNS (RFC 1035 section 4.2.1) */
#define HEADER 12
#define DOMAIN "\7clients\7example" /* labels; the string's final 0 is the root's empty label */

struct waiting {
    uint64_t due;
    struct sockaddr_in client;
    uint16_t length;
    unsigned char message[MAX_MESSAGE];
};

static struct waiting queue[MAX_WAITING];
static size_t first, count;

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 * MILLISECOND + time.tv_nsec;
}

/* Appends a record's fixed part, owned by the name in the question; returns where its data begins. */
static unsigned char *begin_record(unsigned char *at, uint16_t type, size_t length)
{
    const unsigned char fixed[] = {0xC0, HEADER, type >> 8, type, 0, 1, 0, 0, 1, 44 /* TTL 300 */, length >> 8, length};

    return (unsigned char *)memcpy(at, fixed, sizeof fixed) + sizeof fixed;
}

/* Turns a query into its answer, in place. Returns the answer's length, or 0 if the message is not a query. */
static size_t answer(unsigned char *message, size_t length)
{
    unsigned char *name = message + HEADER, *end = name;
    unsigned a, b, c, d;

    if (length < HEADER + 5 || (message[2] & 0xF8) || message[4] || message[5] != 1)
        return 0;
    while (*end && *end < 64 && end + *end + 6 <= message + length)
        end += *end + 1;
    if (*end)
        return 0;
    char text[256];
    size_t text_length = 0;
    for (unsigned char *label = name; *label; label += *label + 1)
        text_length += snprintf(text + text_length, sizeof text - text_length, "%.*s.", *label, label + 1);
    uint16_t type = end[1] << 8 | end[2];
    unsigned char *after = end + 5;
    /* The header: an answer without error, with one question and one record. */
    memcpy(message + 2, (unsigned char[]){0x80 | (message[2] & 1), 0x80, 0, 1, 0, 1, 0, 0, 0, 0}, 10);
    if (type == 12 && sscanf(text, "%u.%u.%u.%u.in-addr.arpa.", &d, &c, &b, &a) == 4) {
        char host[64];
        int host_length = snprintf(host, sizeof host, "h-%u-%u-%u-%u", a, b, c, d);
        after = begin_record(after, type, 1 + host_length + sizeof DOMAIN);
        *after++ = host_length;
        after = (unsigned char *)mempcpy(mempcpy(after, host, host_length), DOMAIN, sizeof DOMAIN);
    } else if (type == 1 && sscanf(text, "h-%u-%u-%u-%u.clients.example.", &a, &b, &c, &d) == 4) {
        after = begin_record(after, type, 4);
        after = (unsigned char *)mempcpy(after, (unsigned char[]){a, b, c, d}, 4);
    } else {
        message[3] |= 3; /* NXDOMAIN */
        message[7] = 0;
    }
    return after - message;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: resolver PORT MILLISECONDS\n");
        return 2;
    }
    alarm(MAX_SECONDS);
    uint64_t delay = strtoul(argv[2], NULL, 10) * MILLISECOND;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int server = must(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
    setsockopt(server, SOL_SOCKET, SO_RCVBUF, &(int){4 << 20}, sizeof(int));
    must(bind(server, (struct sockaddr *)&address, sizeof address), "bind");
    for (;;) {
        uint64_t time = now(), wait = count ? queue[first].due - time : 0;
        if (count && queue[first].due <= time) {
            struct waiting *due = &queue[first];
            sendto(server, due->message, due->length, 0, (struct sockaddr *)&due->client, sizeof due->client);
            first = (first + 1) % MAX_WAITING;
            count--;
            continue;
        }
        struct pollfd readable = {.fd = server, .events = POLLIN};
        struct timespec timeout = {.tv_sec = wait / (1000 * MILLISECOND), .tv_nsec = wait % (1000 * MILLISECOND)};
        if (ppoll(&readable, 1, count ? &timeout : NULL, NULL) <= 0)
            continue;
        struct waiting *next = &queue[(first + count) % MAX_WAITING], dropped;
        if (count == MAX_WAITING)
            next = &dropped;
        socklen_t length = sizeof next->client;
        /* Leaves room in the buffer for the answer, which is longer than the query by one record. */
        ssize_t got = recvfrom(server, next->message, MAX_MESSAGE - 64, 0, (struct sockaddr *)&next->client, &length);
        if (got > 0 && next != &dropped && (next->length = answer(next->message, got))) {
            next->due = now() + delay;
            count++;
        }
    }
}

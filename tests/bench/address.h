/*
 * Addresses of the benchmark's tools: inet:ADDRESS:PORT, on loopback only, or unix:PATH.
 */
#ifndef ADDRESS_H
#define ADDRESS_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

struct address {
    socklen_t length;
    union {
        struct sockaddr any;
        struct sockaddr_in inet;
        struct sockaddr_un local;
    } socket;
};

/* Parses an address. Ends the program for any other text, so no tool can put load on another machine. */
static inline struct address address_of(const char *text)
{
    struct address found = {0};
    char host[16];
    unsigned port;

    if (sscanf(text, "inet:%15[0-9.]:%5u", host, &port) == 2 && port < 65536 &&
        inet_pton(AF_INET, host, &found.socket.inet.sin_addr) == 1 &&
        ntohl(found.socket.inet.sin_addr.s_addr) >> 24 == 127) {
        found.socket.inet.sin_family = AF_INET;
        found.socket.inet.sin_port = htons(port);
        found.length = sizeof found.socket.inet;
    } else if (!strncmp(text, "unix:/", 6) && strlen(text + 5) < sizeof found.socket.local.sun_path) {
        found.socket.local.sun_family = AF_UNIX;
        strcpy(found.socket.local.sun_path, text + 5);
        found.length = sizeof found.socket.local;
    } else {
        fprintf(stderr, "%s: not inet:127.0.0.1:PORT or unix:/PATH\n", text);
        exit(2);
    }
    return found;
}

/* Makes small messages leave at once, as Postfix's do (TCP_NODELAY). Does nothing for a unix socket. */
static inline void send_at_once(int socket)
{
    int on = 1;

    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Returns the result of a system call. If the call failed, reports the error and ends the program. */
static inline int must(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(2);
    }
    return result;
}

#endif

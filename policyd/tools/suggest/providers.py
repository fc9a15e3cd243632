"""A list of large mail providers, whose names and networks carry the mail of very many users.

A rule against such a provider refuses the mail of millions of users because of a few, so such a candidate gets a
remark. The list has domains of the providers' outgoing servers (as in reverse DNS) and of their users. It need not be
complete: a candidate without a remark still shows its evidence.
"""

from __future__ import annotations

_NAMES = """
    google.com gmail.com googlemail.com outlook.com hotmail.com live.com msn.com office365.com yahoo.com yahoo.co.jp
    yahoodns.net aol.com aol.net icloud.com me.com mac.com apple.com gmx.net gmx.com gmx.de web.de 1and1.com ionos.com
    kundenserver.de t-online.de telekom.de freenet.de arcor.de vodafone.de mailbox.org posteo.de strato.de rzone.de
    proton.ch protonmail.ch proton.me tutanota.de fastmail.com messagingengine.com zoho.com zoho.eu zohomail.com
    mail.ru yandex.ru yandex.net yandex.com rambler.ru qq.com 163.com 126.com netease.com sina.com aliyun.com
    naver.com daum.net hanmail.net kakao.com docomo.ne.jp au.com ezweb.ne.jp softbank.ne.jp softbank.jp nifty.com
    biglobe.ne.jp so-net.ne.jp ocn.ne.jp plala.or.jp rediffmail.com
    orange.fr wanadoo.fr free.fr proxad.net laposte.net sfr.fr bbox.fr ovh.net mail.ovh.net libero.it tiscali.it
    virgilio.it tim.it aruba.it pec.it telefonica.net terra.com bol.com.br uol.com.br locaweb.com.br
    seznam.cz centrum.cz wp.pl onet.pl o2.pl interia.pl abv.bg ukr.net i.ua freemail.hu
    bluewin.ch hispeed.ch telenet.be skynet.be proximus.be ziggo.nl kpnmail.nl xs4all.nl transip.email
    btinternet.com bt.com sky.com virginmedia.com talktalk.net comcast.net charter.net cox.net verizon.net att.net
    sbcglobal.net bellsouth.net earthlink.net rr.com shaw.ca rogers.com bell.net telus.net bigpond.com optusnet.com.au
    secureserver.net godaddy.com hostinger.com namecheap.com privateemail.com registrar-servers.com dreamhost.com
    amazonses.com sendgrid.net sendgrid.com mailgun.net mailgun.org mandrillapp.com mailchimp.com mcsv.net mcdlv.net
    rsgsv.net sparkpostmail.com mailjet.com sendinblue.com brevo.com postmarkapp.com mtasv.net exacttarget.com
    salesforce.com hubspotemail.net constantcontact.com ccsend.com klaviyomail.com createsend.com
    mimecast.com mimecast.co.za pphosted.com ppe-hosted.com messagelabs.com barracudanetworks.com iphmx.com
    trendmicro.com trendmicro.eu hornetsecurity.com antispameurope.com mailcontrol.com mxlogic.net
    facebook.com facebookmail.com linkedin.com twitter.com amazon.com amazon.co.jp ebay.com paypal.com github.com
"""
_PROVIDERS = frozenset(_NAMES.split())


def provider_of(name: str) -> str | None:
    """Returns the large mail provider of a host name or mail domain, as the provider's domain; None if none has it."""
    labels = name.lower().rstrip(".").split(".")
    for start in range(len(labels) - 1):
        if (suffix := ".".join(labels[start:])) in _PROVIDERS:
            return suffix
    return None

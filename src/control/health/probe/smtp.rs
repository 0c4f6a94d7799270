//! `smtp`: a mail server greets, and takes our name (RFC 5321 sections 3.1, 3.2).

use super::line::Talk;
use super::{Asked, Asking, Bad, Good, Outcome, Probe};
use crate::control::health::spec::{Codes, SmtpSpec};
use crate::control::health::transport::Connect;

pub struct Smtp(pub SmtpSpec);

impl Smtp {
    async fn run(&self, asked: &Asked, by: &dyn Connect) -> Outcome {
        let mut talk = Talk::begin(asked, by).await?;
        let greeting = talk.greeting(&self.0.expect).await?;
        let SmtpSpec { helo, .. } = &self.0;
        // A server of before 2001 may not know EHLO.
        if talk.ask(&format!("EHLO {helo}")).await?.code != 250 {
            let reply = talk.ask(&format!("HELO {helo}")).await?;
            reply.of(&Codes(vec![(250, 250)]), "the reply to HELO")?;
        }
        talk.quit().await?;
        Ok::<_, Bad>(Good::said(greeting.said()))
    }
}

impl Probe for Smtp {
    fn ask<'a>(&'a self, asked: &'a Asked, by: &'a dyn Connect) -> Asking<'a> {
        Box::pin(self.run(asked, by))
    }
}

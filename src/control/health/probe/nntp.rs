//! `nntp`: a news server greets (RFC 3977 section 5.1) and, if so wanted, lets a user in (RFC 4643 section 2.3).

use super::line::Talk;
use super::{Asked, Asking, Good, Outcome, Probe};
use crate::control::health::spec::{Codes, LoginSpec};
use crate::control::health::transport::Connect;

pub struct Nntp(pub LoginSpec);

impl Nntp {
    async fn run(&self, asked: &Asked, by: &dyn Connect) -> Outcome {
        let mut talk = Talk::begin(asked, by).await?;
        let mut last = talk.greeting(&self.0.expect).await?;
        if let Some((user, password)) = &self.0.login {
            last = talk.ask(&format!("AUTHINFO USER {user}")).await?;
            if last.code == 381 {
                last = talk.ask(&format!("AUTHINFO PASS {password}")).await?;
            }
            last = last.of(&Codes(vec![(281, 281)]), "the reply to the login")?;
        }
        talk.quit().await?;
        Ok(Good::said(last.said()))
    }
}

impl Probe for Nntp {
    fn ask<'a>(&'a self, asked: &'a Asked, by: &'a dyn Connect) -> Asking<'a> {
        Box::pin(self.run(asked, by))
    }
}

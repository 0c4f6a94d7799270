//! `ftp`: a server greets (RFC 959 section 5.4) and, if so wanted, lets a user in.

use super::line::Talk;
use super::{Asked, Asking, Good, Outcome, Probe};
use crate::control::health::spec::{Codes, LoginSpec};
use crate::control::health::transport::Connect;

pub struct Ftp(pub LoginSpec);

impl Ftp {
    async fn run(&self, asked: &Asked, by: &dyn Connect) -> Outcome {
        let mut talk = Talk::begin(asked, by).await?;
        let mut last = talk.greeting(&self.0.expect).await?;
        if let Some((user, password)) = &self.0.login {
            last = talk.ask(&format!("USER {user}")).await?;
            if last.code == 331 {
                last = talk.ask(&format!("PASS {password}")).await?;
            }
            last = last.of(&Codes(vec![(230, 230)]), "the reply to the login")?;
        }
        talk.quit().await?;
        Ok(Good::said(last.said()))
    }
}

impl Probe for Ftp {
    fn ask<'a>(&'a self, asked: &'a Asked, by: &'a dyn Connect) -> Asking<'a> {
        Box::pin(self.run(asked, by))
    }
}
